"""The plan templates of the package: files to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources

from controller.errors import ConfigInvalid
from controller.plans.reading import load_plan
from schemas.plan import PlanDocument

_PLACEHOLDER = "flag: my-flag"


def _template_names() -> Iterable[str]:
    files = resources.files("schemas") / "templates"
    return sorted(
        file.name.removesuffix(".yaml") for file in files.iterdir() if file.name.endswith(".yaml")
    )


def templates() -> dict[str, str]:
    """Return each template's name and what it does, in one line."""
    return {name: template(name, "my-flag").description for name in _template_names()}


def template_text(name: str, flag: str) -> str:
    """Return a template as YAML with its comments, for `flag`.

    Raises ConfigInvalid for an unknown name.
    """
    names = list(_template_names())
    if name not in names:
        raise ConfigInvalid(f"there is no template {name!r}; there are: {', '.join(names)}")
    text = (resources.files("schemas") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.replace(_PLACEHOLDER, f"flag: {json.dumps(flag)}", 1)


def template(name: str, flag: str) -> PlanDocument:
    """Return a template as the plan of `flag`.

    Raises ConfigInvalid for an unknown name or an unusable flag key.
    """
    return load_plan(template_text(name, flag), f"template {name}")
