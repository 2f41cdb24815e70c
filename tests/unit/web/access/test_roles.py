"""The table of roles is the one that people read."""

from __future__ import annotations

import re
from pathlib import Path

from controller.settings.access_file import Role
from controller.web.access.roles import NEEDED

PAGE = Path(__file__).parents[4] / "ops" / "sign-in.md"


def test_the_documented_roles_are_those_that_count() -> None:
    """`ops/sign-in.md` names each verb beside the least role that may give it."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {
        verb: Role[role.upper()] for role, verbs in rows for verb in re.findall(r"`(\w+)`", verbs)
    }
    assert documented == {verb.value: role for verb, role in NEEDED.items()}
