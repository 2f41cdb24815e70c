"""Packages that our libraries import only because they are installed, kept out of the daemon.

structlog imports rich to print tracebacks on a terminal, which we switch off, and greenlet; redis
imports OpenTelemetry's SDK, which we do not set up. Both libraries work without them. Together they
are 60 to 190 modules, and 3 to 6 MB of memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: What is not imported along with a library. `click` is not here: uvicorn needs it.
UNUSED: Final = ("greenlet", "opentelemetry", "pygments", "rich")


@contextmanager
def without_unused_packages() -> Iterator[None]:
    """Let an import of one of `UNUSED` fail, as where it is not installed, until the end.

    Those that are imported already stay. Afterwards they can be imported again.
    """
    absent = [name for name in UNUSED if name not in sys.modules]
    # None stands for a module that cannot be imported: docs.python.org/3/reference/import.html
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
