"""The operator's command: `rolloutctl`.

It publishes commands, waits for the one result of each, and shows where rollouts stand.

Exit codes: 0 accepted or shown; 1 rejected, plan with errors, or no such rollout; 2 usage; 3 no
result in time (the command may still be carried out; repeating it with the same --id is safe); 4
Kafka not reached; 78 bad configuration; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from controller.cli.examples import CONTEXT
from controller.cli.lazy_commands import LazyGroup
from controller.cli.version import version_option

app = typer.Typer(
    help="Control and watch rollouts: publish commands to Kafka and wait for the one result "
    "of each.",
    epilog="Exit codes: 0 accepted or shown; 1 rejected, plan with errors, no such rollout; 2 "
    "usage; 3 no result in time "
    "(repeating with the same --id is safe); 4 Kafka not reached; 78 bad configuration; "
    "130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    cls=LazyGroup,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main_options(version: Annotated[bool, version_option("rolloutctl")] = False) -> None:
    pass


def main() -> None:
    """Run the command line."""
    from controller.cli import completion
    from controller.cli.common import EXIT_INTERRUPTED, prepare_process

    prepare_process()
    try:
        if completion.VARIABLE in os.environ:
            completion.prepare()
        sys.exit(app())
    except KeyboardInterrupt:  # while a word is completed: commands end by themselves
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
