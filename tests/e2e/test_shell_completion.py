"""bash, zsh and fish complete what is typed, by the script that we print, in a real terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest

from controller.cli import known_flags
from controller.cli.completion import Shell
from controller.settings import KafkaSettings
from tests.shells import HOW_SHELLS, NOT_COMPLETED, commands_typed, write_stand_in

ROLLOUTCTL = Path(sys.executable).with_name("rolloutctl")
#: Nothing listens there.
AWAY = "127.0.0.1:1"

TYPED = ("rolloutctl plan li\t", "rolloutctl pause new-ch\t", "rolloutctl pause --exp\t7")
MEANT = ["plan lint", "pause new-checkout", "pause --expected-revision 7"]


@pytest.mark.parametrize("shell", get_args(Shell))
def test_commands_flags_and_options_are_completed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TAB key ends each word: of a command, of a flag that has a rollout, of an option."""
    if shutil.which(shell) is None:
        pytest.skip(f"{NOT_COMPLETED}: no {shell}; {HOW_SHELLS}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = known_flags.cache_file(KafkaSettings(bootstrap_servers=AWAY))
    kept.parent.mkdir()
    kept.write_text(json.dumps(["new-checkout", "old"]))
    record = tmp_path / "record"
    write_stand_in(tmp_path / "bin", str(ROLLOUTCTL), str(record))
    environ = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": AWAY,
    }
    assert commands_typed(shell, TYPED, record, environ) == MEANT
