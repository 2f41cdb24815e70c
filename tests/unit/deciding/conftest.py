"""What every test of the deciding side has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep log lines and tracebacks of mistakes made on purpose out of the report.

    Drawing the tracebacks takes longer than the tests.
    """
    with structlog.testing.capture_logs():
        yield
