"""The options with which virtual traffic is typed for `simulate` and `plan lint`.

Belongs here: the options. Does not belong here: how they are read (`planning/typed_traffic.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from controller.cli.common import EXIT_USAGE, fail
from controller.errors import BadInput

_PANEL = "Traffic"
TrafficOption = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        metavar="N/s",
        help="Contexts per s, min, h or d, both arms together. Default: the plan's.",
        rich_help_panel=_PANEL,
    ),
]
ErrorRateOption = Annotated[
    str | None,
    typer.Option(
        "--error-rate",
        metavar="SHARE",
        help="Control's, as in 0.5%. Default: half the limit.",
        rich_help_panel=_PANEL,
    ),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="P50,P99",
        help="Control's p50 and p99, as in 40ms,150ms; log-normal. Default: within the limits.",
        rich_help_panel=_PANEL,
    ),
]
ConversionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--conversion",
        metavar="NAME=SHARE",
        help="Control's, as in bought=3%; may be repeated.",
        rich_help_panel=_PANEL,
    ),
]


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Exit 2 with the words where something was typed that cannot be meant."""
    try:
        yield
    except BadInput as refused:
        fail(str(refused), EXIT_USAGE)
