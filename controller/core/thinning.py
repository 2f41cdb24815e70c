"""Keeps a bounded number of points of a course that may take seconds or weeks.

Points lie on a grid of `step` seconds. When there are too many, the step doubles, and the points
between the wider lines go. So they are spread evenly over the whole course, whatever its length,
and two writers that follow each other agree on which points there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

#: Evidence is judged in full about once a second.
FIRST_STEP_SECONDS = 1


class Thinning:
    """Which seconds of a course are kept: at most `most` of them, on the present grid."""

    def __init__(self, most: int, kept: Iterable[int] = ()) -> None:
        """`kept`: seconds since the epoch of the points that are there already."""
        self._most = most
        self._kept = sorted(set(kept))
        self.step = FIRST_STEP_SECONDS
        while len(self._kept) > 1 and self._narrowest() >= 2 * self.step:
            self.step *= 2

    def _narrowest(self) -> int:
        return min(later - earlier for earlier, later in pairwise(self._kept))

    @property
    def kept(self) -> tuple[int, ...]:
        """Seconds since the epoch of the points that are kept, oldest first."""
        return tuple(self._kept)

    def takes(self, second: int, *, is_turning_point: bool = False) -> bool:
        """Return whether a point at this second is kept: it is on a line of its own.

        A turning point, which is where something was decided, needs no line. It may take the place
        of one in its second.
        """
        if not self._kept:
            return True
        if is_turning_point:
            return second >= self._kept[-1]
        return second // self.step > self._kept[-1] // self.step

    def add(self, second: int) -> tuple[int, ...]:
        """Keep a point that `takes` accepts; return the points that go for it."""
        if second in self._kept[-1:]:
            return ()
        self._kept.append(second)
        gone: list[int] = []
        while len(self._kept) > self._most:
            self.step *= 2
            gone += self._thin()
        return tuple(gone)

    def _thin(self) -> list[int]:
        """Keep the first point of each line of the grid, and the newest; return the others."""
        rest, gone = [], []
        line: int | None = None
        for second in self._kept[:-1]:
            if second // self.step == line:
                gone.append(second)
            else:
                rest.append(second)
                line = second // self.step
        self._kept = [*rest, self._kept[-1]]
        return gone
