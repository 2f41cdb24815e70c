"""User CPU of a command's start: `python -m tests.benchmarks.startup`.

The ratio compares machines: it is to `import typer`, which every command needs. `status` asks an
address where nothing listens, so its figure is that of its imports and of one refused connection.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

ROUNDS = 7

COMMANDS = {
    "import typer": ("-c", "import typer"),
    "rolloutctl --version": ("-m", "controller.cli.operator", "--version"),
    "rolloutctl --help": ("-m", "controller.cli.operator", "--help"),
    "rolloutctl pause --help": ("-m", "controller.cli.operator", "pause", "--help"),
    "rolloutctl <TAB>": (
        "-c",
        "import sys; sys.argv = ['rolloutctl']\nfrom controller.cli.operator import main; main()",
    ),
    "rolloutctl status": (
        "-m",
        "controller.cli.operator",
        "status",
        "--bootstrap-servers",
        "127.0.0.1:1",
    ),
    "rolloutd --version": ("-m", "controller.cli.daemon", "--version"),
}
_COMPLETING = {
    "_ROLLOUTCTL_COMPLETE": "complete_bash",
    "COMP_WORDS": "rolloutctl ",
    "COMP_CWORD": "1",
}


def user_seconds(arguments: tuple[str, ...], environ: dict[str, str]) -> float:
    """Return the least user CPU seconds of several runs: load adds, nothing subtracts."""
    least = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(
            [sys.executable, *arguments], capture_output=True, check=False, env=environ, timeout=120
        )
        least = min(least, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    return least


def main() -> None:
    """Print milliseconds and ratios."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    base = 0.0
    for name, arguments in COMMANDS.items():
        further = _COMPLETING if name.endswith("<TAB>") else {}
        seconds = user_seconds(arguments, {**os.environ, **further})
        base = base or seconds
        print(f"{name:<26}{1000 * seconds:>6.0f} ms {seconds / base:>6.1f}")


if __name__ == "__main__":
    main()
