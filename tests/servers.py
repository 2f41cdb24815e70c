"""What every server has in common that a test starts by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class OwnServer(ABC):
    """Runs inside a `with`; a start that fails leaves nothing running."""

    @abstractmethod
    def start(self) -> object:
        """Start the server unless it runs, and return once it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """Stop whatever runs, and remove what it wrote."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
