"""What both installed commands begin with: nothing is imported before Ctrl-C ends them quietly.

Importing a command line takes a third of a second, in which Python's own handler would print where
each import was. Nothing is under way then that would have to end in order.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


def rolloutctl() -> None:
    """Run `rolloutctl`."""
    is_ours = _end_at_once()
    from controller.cli.operator import main

    _run(main, is_ours)


def rolloutd() -> None:
    """Run `rolloutd`."""
    is_ours = _end_at_once()
    from controller.cli.daemon import main

    _run(main, is_ours)


def _end_at_once() -> bool:
    """Let SIGINT end the process without a word; False where whoever started it ignores SIGINT."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return is_ours


def _run(main: Callable[[], None], is_ours: bool) -> None:
    """Let SIGINT raise KeyboardInterrupt, which commands end by; also while they are imported."""
    try:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        sys.exit(130)
