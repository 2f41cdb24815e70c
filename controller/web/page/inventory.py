"""The flags screen: what a person should put right about flags first, then every flag.

Belongs here: what the screen shows. Does not belong here: what is found about a flag
(`reporting/inventory.py`), and the list itself (`web/inventory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from controller.reporting.inventory import ListedFlag, decision_words, evaluations_words
from controller.reporting.lift import lifts_words
from controller.web.inventory import FlagQuestion, Inventory
from controller.web.page.rendering import Renderer, ScreenSection
from controller.web.questions import MOST_PAGES, Query, number
from schemas.terms import FlagFinding

#: Flags of one page: with them it stays below 100 kB.
ROWS: Final = 60
WORDS: Final = {
    FlagFinding.STALE: "stale",
    FlagFinding.EXPIRED: "expired",
    FlagFinding.NO_OWNER: "without owner",
    FlagFinding.NAME: "key against the convention",
    FlagFinding.TOO_MANY_OF_OWNER: "too many of one owner",
    FlagFinding.TOO_MANY: "too many in all",
    FlagFinding.NOT_EVALUATED: "not evaluated",
}


@dataclass(frozen=True, slots=True)
class FlagsView:
    """What one page of the list shows."""

    question: FlagQuestion
    number: int = 1  # of the page, 1 for the first

    @classmethod
    def asked(cls, query: Query) -> FlagsView:
        """Return what a query asks for. Raises QuestionRefused for a parameter that is wrong."""
        return cls(FlagQuestion.asked(query), number(query, "page", 1, 1, MOST_PAGES))

    def url(self, **changed: str | int) -> str:
        """Return the address of this view, or of one that differs."""
        values: dict[str, str | int] = {
            "q": self.question.part,
            "finding": self.question.finding,
            "page": self.number,
            **changed,
        }
        kept = {name: value for name, value in values.items() if value not in ("", 1)}
        return f"/ui/flags?{urlencode(kept)}" if kept else "/ui/flags"


class FlagScreen:
    """Makes the sections of the flags screen."""

    def __init__(self, inventory: Inventory, renderer: Renderer) -> None:
        self._inventory = inventory
        self._renderer = renderer

    async def sections(self, view: FlagsView) -> list[ScreenSection]:
        """Return the screen. While it is not known which flags there are, it says so."""
        board = self._inventory.board
        if (why_not := board.why_nothing_known) is not None:
            return self._renderer.blocks("unknown.html", {"why": why_not, "faults": ()})
        found = await self._inventory.found(view.question)
        pages = max(1, -(-len(found.flags) // ROWS))
        present = min(view.number, pages)
        shown = found.flags[(present - 1) * ROWS : present * ROWS]
        return self._renderer.blocks(
            "flags.html",
            {
                "view": view,
                "number": present,
                "pages": pages,
                "total": len(found.flags),
                "all": found.total,
                "counts": [(kind, WORDS[kind], found.counts[kind]) for kind in FlagFinding],
                "flags": [(one.line(), one.findings, _use_words(one)) for one in shown],
                "words": WORDS,
                "unknown": found.unknown if present == pages else {},
                "why_stale": board.why_stale,
            },
        )


def _use_words(one: ListedFlag) -> dict[str, str]:
    """Return how a flag is used, in words."""
    return {
        "evaluations": evaluations_words(one.use),
        "lift": lifts_words(() if one.use is None else one.use.lifts),
        "decision": decision_words(one.use),
    }
