"""The inventory of flags over HTTP: worked out once per change of the fleet, and paged.

Belongs here: `GET /api/v1/flags`, as JSON and as CSV, and the list that the page shows. Does not
belong here: what is found about a flag (`reporting/inventory.py`).
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import parse_qs

import xxhash
from starlette.types import Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.plans import Finding
from controller.ports import FlagUses
from controller.reporting.inventory import Census, ListedFlag, counted, listing
from controller.reporting.start_rules import start_findings
from controller.settings.flags import FlagsSettings
from controller.web.answers import send_bytes, send_error, send_tagged
from controller.web.flags import FlagBoard
from controller.web.fleet_order import FleetOrder
from controller.web.questions import LONGEST_SEARCH, Query, QuestionRefused, number
from schemas.api import MOST_OF_A_PAGE, PAGE
from schemas.inventory import FlagList, UnknownFlag
from schemas.plan import PlanDocument
from schemas.terms import FlagFinding

#: Flags looked at before other requests get a turn.
_PER_TURN: Final = 500
#: Ages count in days: the list is worked out again this often without a change.
_AGES_EVERY_SECONDS: Final = 60
ANY: Final = "any"
_COLUMNS: Final = (
    "flag",
    "owner",
    "flag_type",
    "phase",
    "percent",
    "started_at",
    "updated_at",
    "expires_at",
    "evaluations_treatment",
    "evaluations_control",
    "evaluations_neither",
    "evaluated_at",
    "lift",
    "lift_low",
    "lift_high",
    "lift_conversion",
    "last_decision",
    "last_decision_at",
    "events_without_rollout",
    "findings",
)


@dataclass(frozen=True, slots=True)
class FlagQuestion:
    """Which flags are asked for; empty: all."""

    part: str = ""  # of key or owner
    finding: str = ""  # one of `FlagFinding`, or `ANY`

    @classmethod
    def asked(cls, query: Query) -> FlagQuestion:
        """Return what a query asks for. Raises QuestionRefused for a finding that there is not."""
        part = query.get("q", [""])[-1].strip()[:LONGEST_SEARCH]
        finding = query.get("finding", [""])[-1]
        if finding not in ("", ANY, *FlagFinding):
            raise QuestionRefused(400, f"finding is one of: {ANY}, {', '.join(FlagFinding)}")
        return cls(part, finding)

    def fits(self, one: ListedFlag) -> bool:
        """Return whether a flag is asked for."""
        if self.finding == ANY and not one.findings:
            return False
        if self.finding not in ("", ANY) and all(f.kind != self.finding for f in one.findings):
            return False
        return self._is_in(one.rollout.flag_key, one.rollout.plan.owner)

    def fitting(self, unknown: Mapping[str, int]) -> Mapping[str, int]:
        """Return those of the flags without a rollout that are asked for; they have no findings."""
        if self.finding:
            return {}
        return {name: count for name, count in unknown.items() if self._is_in(name)}

    def _is_in(self, *texts: str) -> bool:
        part = self.part.casefold()
        return not part or any(part in text.casefold() for text in texts)


@dataclass(frozen=True, slots=True)
class FlagSource:
    """What the inventory goes by, beside the rollouts."""

    rules: FlagsSettings = field(default_factory=FlagsSettings)
    uses: Callable[[], FlagUses] = FlagUses  # how flags are used, as known last


@dataclass(frozen=True, slots=True)
class Found:
    """The flags that fit, in order, and how many of all have each finding."""

    flags: Sequence[ListedFlag]
    counts: dict[FlagFinding, int]
    total: int  # of all flags, whatever was asked
    unknown: Mapping[str, int]  # events by flag without a rollout, of those that fit


class Inventory:
    """Lists the flags of a board with what is found about them."""

    def __init__(
        self, board: FlagBoard, now: Callable[[], datetime], source: FlagSource | None = None
    ) -> None:
        """`source` None: the default rules, and no flag's use is known."""
        self.board = board
        self.now = now
        self._source = FlagSource() if source is None else source
        self._lock = asyncio.Lock()  # whoever asks while the list is worked out waits for it
        self._version: tuple[int, int, int] | None = None
        self._flags: list[ListedFlag] = []
        self._counts: dict[FlagFinding, int] = {}

    def let_go(self, _flag_key: str) -> None:
        """Keep nothing until somebody asks again; a list that is being worked out stays."""
        if not self._lock.locked():
            self._version, self._flags, self._counts = None, [], {}

    async def found(self, question: FlagQuestion) -> Found:
        """Return the flags that fit."""
        async with self._lock:
            now, uses = self.now(), self._source.uses()
            minute = int(now.timestamp()) // _AGES_EVERY_SECONDS
            version = (self.board.version, uses.version, minute)
            if version != self._version:
                await self._work_out(now, uses)
                self._version = version
            flags, counts = self._flags, self._counts
        fitting = flags if question == FlagQuestion() else list(filter(question.fits, flags))
        return Found(fitting, counts, len(flags), question.fitting(uses.unknown))

    def start_rules(self) -> Callable[[PlanDocument], Iterable[Finding]]:
        """Return what finds what a start would be told, beside the flags that there are now.

        It may be called in a thread.
        """
        return partial(start_findings, rollouts=self.board.rollouts, rules=self._source.rules)

    async def _work_out(self, now: datetime, uses: FlagUses) -> None:
        rollouts, rules = self.board.rollouts, self._source.rules
        census = Census.of(rollouts)
        listed = []
        for count, rollout in enumerate(rollouts, start=1):
            listed.append(listing(rollout, now, rules, census, uses))
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
        listed.sort(key=lambda one: one.place)
        self._flags, self._counts = listed, counted(listed)


class Lists(NamedTuple):
    """The lists that the page and the API share."""

    fleet: FleetOrder
    inventory: Inventory

    @classmethod
    def of(
        cls,
        board: FlagBoard,
        now: Callable[[], datetime],
        source: FlagSource | None,
        is_unwatched: Callable[[Rollout], object] = lambda _: None,
    ) -> Lists:
        """Return the lists of a board; `is_unwatched` tells of rollouts that nobody sees."""
        lists = cls(FleetOrder(board, now, is_unwatched), Inventory(board, now, source))
        board.on_dropped(lists.fleet.let_go, lists.inventory.let_go)
        return lists


class FlagPage:
    """GET /api/v1/flags: the inventory of flags; q, finding, limit, offset, format=csv."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer those that fit the question; 503 while it is not known which there are."""
        if (why_not := self._inventory.board.why_nothing_known) is not None:
            await send_error(send, 503, why_not, (b"retry-after", b"1"))
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        try:
            question = FlagQuestion.asked(query)
            if query.get("format", [""])[-1] == "csv":
                body = await self.table(question)
                await send_bytes(send, 200, body, _CSV_HEADERS)
                return
            answer = await self.answer(question, query)
        except QuestionRefused as refused:
            await send_error(send, refused.status, str(refused))
            return
        body = answer.model_dump_json().encode()
        await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')

    async def answer(self, question: FlagQuestion, query: Query) -> FlagList:
        """Return the flags that fit. Raises QuestionRefused for a parameter that is wrong."""
        limit = number(query, "limit", PAGE, 1, MOST_OF_A_PAGE)
        offset = number(query, "offset", 0, 0, 1_000_000)
        found = await self._inventory.found(question)
        return FlagList(
            flags=[one.line() for one in found.flags[offset : offset + limit]],
            total=len(found.flags),
            offset=offset,
            counts=found.counts,
            without_rollout=[
                UnknownFlag(flag=name, events=count) for name, count in found.unknown.items()
            ],
            at=self._inventory.now(),
            stale_since=self._inventory.board.stale_since,
        )

    async def table(self, question: FlagQuestion) -> bytes:
        """Return all flags that fit as CSV."""
        found = await self._inventory.found(question)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(_COLUMNS)
        for count, one in enumerate(found.flags, start=1):
            writer.writerow([_cell(value) for value in _row(one)])
            if count % 100 == 0:
                await asyncio.sleep(0)
        for name, events in found.unknown.items():
            unknown: dict[str, object] = {"flag": name, "events_without_rollout": events}
            writer.writerow([_cell(unknown.get(column)) for column in _COLUMNS])
        return text.getvalue().encode()


def _row(one: ListedFlag) -> list[object]:
    """Return a flag's values in the order of `_COLUMNS`."""
    line = one.line()
    values = line.model_dump(mode="json")
    for arm, count in (values["evaluations"] or {}).items():
        values[f"evaluations_{arm}"] = count
    for lift in line.lifts[:1]:  # a table has one per flag: the first that the plan names
        values |= {"lift": lift.lift, "lift_low": lift.low, "lift_high": lift.high}
        values["lift_conversion"] = lift.conversion
    if (decision := values["last_decision"]) is not None:
        values |= {"last_decision": decision["kind"], "last_decision_at": decision["at"]}
    values["findings"] = " ".join(each.kind for each in one.findings)
    return [values.get(name) for name in _COLUMNS]


_CSV_HEADERS: Final = (
    (b"content-type", b"text/csv; charset=utf-8"),
    (b"content-disposition", b'attachment; filename="flags.csv"'),
    (b"cache-control", b"no-store"),
)


def _cell(value: object) -> str:
    """Return a value for a cell; a text that a spreadsheet would calculate is quoted."""
    if isinstance(value, int | float):
        return str(value)
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
