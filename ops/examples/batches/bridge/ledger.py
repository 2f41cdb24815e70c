"""Knows which runs asked for flags, how they ended, and what of that was published.

Pure: events in, records out. Prefect's events come late, twice, in any order, or never; whatever
the order, the same records come out, once each. One run and flag give one outcome per ending.

Belongs here: what is published and remembered. Does not belong here: Prefect's JSON (`events.py`),
and where records and memory are kept (`publisher.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from batches.bridge.events import Ending, Evaluation, time_of

#: An evaluation this much later than the end of its run still belongs to it: client and server may
#: have different clocks. Somebody who runs it again takes longer.
_CLOCKS_DIFFER = timedelta(seconds=5)
#: Unfinished runs beyond are rather lost ones. With the ids below the memory stays under 1 MB, the
#: longest record that Kafka takes by default.
_MOST_OPEN_RUNS = 500
_MOST_PUBLISHED = 15_000
EVALUATIONS, OUTCOMES = "flag.evaluations", "request.outcomes"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of rolloutd's topics: the context id is its key."""

    topic: str
    key: str
    value: bytes


_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class _Run:
    """A run that asked for flags."""

    flow_run: str | None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)  # flag -> the last one
    last_at: datetime = _LONG_AGO


class Ledger:
    """What was read and published so far."""

    def __init__(self, source: str, lateness: timedelta) -> None:
        """`source` is the events' CloudEvents source.

        An event that is read more than `lateness` after newer ones may be published again or lost.
        """
        self._source = source
        self._lateness = lateness
        self.newest: datetime | None = None  # when the newest event occurred
        self._runs: dict[str, _Run] = {}
        self._endings: dict[str, dict[int, Ending]] = {}  # run -> run count -> the first ending
        self._published: dict[str, datetime] = {}  # short id -> when its event occurred
        self._floor: datetime | None = None  # what was published before is forgotten
        self.dropped_runs = 0

    def since(self, overlap: timedelta) -> datetime | None:
        """Return from when on events are to be read again, None before the first one."""
        if self.newest is None:
            return None
        since = self.newest - min(overlap, self._lateness)
        return since if self._floor is None else max(since, self._floor)

    def read_until(self, at: datetime) -> None:
        """Note that everything up to then was read, also where nothing happened."""
        self.newest = at if self.newest is None else max(self.newest, at)

    def take(self, news: Iterable[Evaluation | Ending]) -> list[Record]:
        """Take events in any order, and return the records that they bring, once each."""
        records: list[Record] = []
        touched: dict[str, None] = {}
        for one in sorted(news, key=lambda event: event.at):
            self.read_until(one.at)
            if isinstance(one, Ending):
                self._endings.setdefault(one.run, {}).setdefault(one.run_count, one)
            else:
                self._take_evaluation(one, records)
            touched[one.run] = None
        for name in touched:
            records.extend(self._outcomes_of(name))
        self._forget()
        return records

    def unfinished(self, asked_before: datetime) -> dict[str, str | None]:
        """Return the runs whose end is not known, with their flow runs, if they asked so long ago.

        Their events may be lost, or they died with their process.
        """
        return {
            name: run.flow_run
            for name, run in self._runs.items()
            if name not in self._endings and run.last_at <= asked_before
        }

    def to_json(self) -> bytes:
        """Return what a new process must know, beside what it reads again.

        It reads the events since `since(lateness)` again, so endings need not be stored.
        """
        unfinished = [run for name, run in self._runs.items() if name not in self._endings]
        return json.dumps(
            {
                "newest": None if self.newest is None else self.newest.isoformat(),
                "floor": None if self._floor is None else self._floor.isoformat(),
                "asked": [_plain(one) for run in unfinished for one in run.evaluations.values()],
                "published": {name: at.timestamp() for name, at in self._published.items()},
            },
            separators=(",", ":"),
        ).encode()

    def load(self, content: bytes) -> None:
        """Go on where `to_json` was."""
        stored = json.loads(content)
        self.newest = None if stored["newest"] is None else time_of(stored["newest"])
        self._floor = None if stored["floor"] is None else time_of(stored["floor"])
        for fields in stored["asked"]:
            self._remember(Evaluation(**{**fields, "at": time_of(fields["at"])}))
        self._published = {
            name: datetime.fromtimestamp(at, UTC) for name, at in stored["published"].items()
        }

    def _take_evaluation(self, one: Evaluation, records: list[Record]) -> None:
        if self._is_first(one.event_id, one.at):
            data = {"feature_flag.key": one.flag, "feature_flag.result.variant": one.variant}
            records.append(
                self._record(EVALUATIONS, "evaluation", one.context_id, one.event_id, one.at, data)
            )
        self._remember(one)

    def _remember(self, one: Evaluation) -> None:
        run = self._runs.setdefault(one.run, _Run(one.flow_run))
        before = run.evaluations.get(one.flag)
        if before is None or (before.at, before.event_id) < (one.at, one.event_id):
            run.evaluations[one.flag] = one
        run.last_at = max(run.last_at, one.at)

    def _outcomes_of(self, name: str) -> Iterable[Record]:
        """Yield an outcome for each ending and each flag that was asked for before it."""
        run = self._runs.get(name)
        if run is None:
            return
        for ending in self._endings.get(name, {}).values():
            for one in run.evaluations.values():
                if one.at > ending.at + _CLOCKS_DIFFER or ending.says_nothing:
                    continue
                event_id = f"{name}/{ending.run_count}/{one.flag}"
                if not self._is_first(event_id, ending.at):
                    continue
                data: dict[str, Any] = {
                    "rolloutd.flags": [
                        {
                            "feature_flag.key": one.flag,
                            "feature_flag.result.variant": one.variant,
                        }
                    ]
                }
                if ending.seconds is not None:
                    data["http.server.request.duration"] = ending.seconds
                if ending.failure is not None:
                    data["error.type"] = ending.failure
                full_id = f"{event_id}/{ending.state_type}"
                yield self._record(OUTCOMES, "outcome", one.context_id, full_id, ending.at, data)

    def _record(
        self,
        topic: str,
        kind: str,
        context_id: str,
        event_id: str,
        at: datetime,
        data: dict[str, Any],
    ) -> Record:
        event = {
            "specversion": "1.0",
            "type": f"io.rolloutd.{kind}.v1",
            "source": self._source,
            "id": event_id,
            "time": at.isoformat(timespec="milliseconds"),
            "data": {"feature_flag.context.id": context_id, **data},
        }
        return Record(topic, context_id, json.dumps(event).encode())

    def _is_first(self, event_id: str, at: datetime) -> bool:
        """Return whether this was not published before, and note that it is now."""
        short = hashlib.blake2b(event_id.encode(), digest_size=9).hexdigest()
        if short in self._published:
            return False
        self._published[short] = at
        return True

    def _forget(self) -> None:
        """Forget what no event that is still waited for can meet."""
        if self.newest is None:
            return
        horizon = self.newest - self._lateness
        if len(self._published) > _MOST_PUBLISHED:
            kept = sorted(self._published.values())[-_MOST_PUBLISHED // 2]
            self._floor = horizon = max(horizon, kept)
        self._published = {name: at for name, at in self._published.items() if at >= horizon}
        for name, by_count in list(self._endings.items()):
            if all(ending.at < horizon for ending in by_count.values()):
                del self._endings[name]
                self._runs.pop(name, None)
        while len(self._runs) > _MOST_OPEN_RUNS:
            del self._runs[min(self._runs, key=lambda name: self._runs[name].last_at)]
            self.dropped_runs += 1


def _plain(one: Evaluation | Ending) -> dict[str, Any]:
    return {**asdict(one), "at": one.at.isoformat()}
