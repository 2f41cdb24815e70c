"""The edges at which foreign bytes enter, each as a function of one hostile case.

An edge takes a `Hostile` and returns a word for what became of the case. Whatever it raises is a
fault of ours: a refusal with a reason is the only way to say no. Edges call the daemon's own
functions, with memory twins where a server would stand.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from controller.adapters.memory import MemoryTotals
from controller.codec.command_records import read_command
from controller.codec.commands import command_event, to_command_received
from controller.codec.plans import to_core_plan
from controller.codec.rollouts import read_state, rollout_from_json, rollout_to_json
from controller.core.analysis.sequential_tests import SequentialTests, decode_tests
from controller.core.events import CommandReceived, EvidenceJudged, Ticked
from controller.core.judging.gate import check_harm, judge
from controller.core.machine import decide, next_deadline
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.counting.counted_flags import Changes
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import PartitionTotals
from controller.errors import BadInput, BrokenInvariant, DocumentUnreadable
from controller.health import Health
from controller.plans import lint_text
from controller.ports import Record
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from schemas.advice import AdviceAnswer, parse_form
from schemas.envelope import MAX_AHEAD_MS
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import CommandVerb, EventFormat
from schemas.totals import encode_progress
from tests.builders import make_command, make_evidence, make_rollout
from tests.hostile import honest
from tests.hostile.material import Hostile
from tests.reports import no_reports

Edge = Callable[[Hostile], str]

#: The process must never stand still for longer: heartbeats and roll backs wait for it.
LONGEST_SECONDS = 0.25


@dataclass(slots=True)
class Report:
    """What a run of cases came to."""

    edge: str
    cases: int = 0
    longest_seconds: float = (
        0.0  # CPU time of one case: the machine may be busy with something else
    )
    longest_case: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Return one line for a person."""
        words = ", ".join(f"{count} {word}" for word, count in self.outcomes.most_common(6))
        return (
            f"{self.edge}: {self.cases} cases, longest {self.longest_seconds * 1000:.0f} ms; "
            f"{words}"
        )


def run(name: str, edge: Edge, seed: int, cases: int) -> Report:
    """Put so many cases to an edge, each from a seed of its own.

    Raises AssertionError that names the seed of a failure.
    """
    report = Report(name)
    gc.collect()
    for number in range(cases):
        material = Hostile(seed * 1_000_003 + number)
        try:
            outcome = edge(material)
        except Exception as fault:
            raise AssertionError(
                f"{name}: seed {seed}, case {number}: {type(fault).__name__}: {fault}"
            ) from fault
        spent = material.longest_seconds
        report.cases += 1
        report.outcomes[outcome] += 1
        if spent > report.longest_seconds:
            report.longest_seconds, report.longest_case = spent, number
    assert report.longest_seconds <= LONGEST_SECONDS, (
        f"{report} (seed {seed}, case {report.longest_case})"
    )
    return report


def _refused(fault: Exception) -> str:
    """Return that a case was refused; a refusal says why."""
    if not str(fault):
        raise AssertionError(f"a {type(fault).__name__} without a reason") from fault
    return "refused"


# --- event records ---

_RECORDS_AT_ONCE = 100


def _directory(now: datetime) -> FlagsToCount:
    """Return a directory of one flag in its first stage since ten minutes."""
    began = now - timedelta(minutes=10)
    rollout = make_rollout(started_at=began, updated_at=began)
    visit = replace(rollout.visits[0], entered_at=began, counts_from=began)
    directory = FlagsToCount()
    directory.count_for(replace(rollout, visits=(visit,)))
    return directory


def _totals(directory: FlagsToCount, *, counts_exposures: bool) -> PartitionTotals:
    return PartitionTotals(
        directory, counts_exposures=counts_exposures, exact_limit=64, window_ms=1_800_000
    )


def _key(material: Hostile) -> bytes | None:
    return material.dice.choice(
        (None, b"", b"user-1", b"\xff\xfe", material.text().encode("utf-8", "surrogatepass"))
    )


def _record(material: Hostile, offset: int, value: bytes | None) -> Record:
    return Record(
        "t", 0, offset, material.timestamp_ms(), _key(material), value, material.headers()
    )


def _counted(
    event_format: EventFormat, *, evaluations: bool, make: Callable[[Hostile], bytes | None]
) -> Edge:
    """Return an edge that folds hostile records of one format with an honest one among them.

    A case is the whole batch: `run` counts it once; `CASES_OF` says how many records it holds.
    """

    def edge(material: Hostile) -> str:
        now = datetime.now(UTC)
        now_ms = int(now.timestamp() * 1000)
        totals = _totals(_directory(now), counts_exposures=evaluations)
        honest_at = material.dice.randrange(_RECORDS_AT_ONCE)
        records = [_record(material, offset, make(material)) for offset in range(_RECORDS_AT_ONCE)]
        good = _good(event_format, evaluations=evaluations)
        records[honest_at] = Record("t", 0, honest_at, now_ms, b"user-9", good, [])
        with material.timed():
            _fold(totals, records, event_format, evaluations=evaluations, now_ms=now_ms)
        progress = totals.progress
        assert progress.adds_up(totals.position), progress
        assert totals.position == _RECORDS_AT_ONCE
        assert progress.counted >= 1, (
            f"the honest record at {honest_at} was not counted: {progress}"
        )
        assert progress.freshest_ms is None or progress.freshest_ms <= now_ms + MAX_AHEAD_MS, (
            progress
        )
        changes = Changes()
        for _ in totals.drain_changes(changes):
            pass
        stored = changes.fields | encode_progress(progress)
        again = _totals(_directory(now), counts_exposures=evaluations)
        again.restore(totals.position, stored)
        if progress.quarantined == 0:
            return "none refused"
        return "some refused" if progress.counted > 1 else "all refused but the honest one"

    return edge


def _fold(
    totals: PartitionTotals,
    records: Sequence[Record],
    event_format: EventFormat,
    *,
    evaluations: bool,
    now_ms: int,
) -> None:
    totals.set_time(now_ms)
    while totals.position < records[-1].offset + 1:
        left = records[totals.position :]
        if evaluations:
            taken = totals.fold_evaluations(left, evaluation_reader(event_format))
        else:
            taken = totals.fold_outcomes(left, outcome_reader(event_format))
        assert taken, "a fold with room takes at least one record"


def _good(event_format: EventFormat, *, evaluations: bool) -> bytes:
    match event_format, evaluations:
        case EventFormat.ROLLOUTD, True:
            return json.dumps(honest.evaluation(context="user-9")).encode()
        case EventFormat.ROLLOUTD, False:
            return json.dumps(honest.outcome(context="user-9")).encode()
        case EventFormat.GO_FEATURE_FLAG, _:
            return json.dumps(honest.go_feature_flag()).encode()
        case _, True:
            return json.dumps(honest.otlp_logs()).encode()
        case _:
            return json.dumps(honest.otlp_spans()).encode()


def _maybe(make: Callable[[], dict[str, Any]]) -> Callable[[Hostile], bytes | None]:
    def value(material: Hostile) -> bytes | None:
        return None if material.dice.random() < 0.02 else material.bytes_of(make())

    return value


# --- commands and plans ---

_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_LONGEST_LIFE = 60  # ticks of one rollout


def commands(material: Hostile) -> str:
    """Read a command record; what is accepted is obeyed, and lives on through its deadlines."""
    verb = material.dice.choice(list(CommandVerb)).value
    fields = honest.command(verb)
    if material.dice.random() < 0.3:
        event = {
            "specversion": "1.0",
            "type": "io.rolloutd.command.v1",
            "source": "/ops",
            "id": "c-1",
            "data": fields,
        }
        fields = event
    key = material.dice.choice((None, b"new-checkout", _key(material)))
    record = (material.bytes_of(fields), material.headers(), key, material.timestamp_ms())
    try:
        with material.timed():
            command = read_command(*record, now=datetime.now(UTC))
    except BadInput as fault:
        return _refused(fault)
    forwarded = command_event(command)
    issued_ms = max(int(command.issued_at.timestamp() * 1000), 0)
    assert read_command(forwarded, (), command.flag.encode(), issued_ms) == command
    event_ = to_command_received(command)
    _live(None, event_)
    _live(make_rollout(), event_)
    return "accepted"


def plans(material: Hostile) -> str:
    """Lint a plan's text.

    One without errors is started, lives, is stored and read again, and is judged.
    """
    written = material.mutated(honest.plan())
    text = material.dumps(written).decode("utf-8", "surrogatepass")
    if material.dice.random() < 0.1:
        text = material.torn(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    with material.timed():
        document, findings = lint_text(text, _NOW)
    assert all(finding.message and finding.fix for finding in findings)
    if document is None or any(finding.is_error for finding in findings):
        return "refused"
    plan = to_core_plan(document)
    start = make_command("start", issued_at=_NOW, plan=plan, command_id="start-1")
    _live(None, start)
    return "started"


def _live(rollout: Rollout | None, command: CommandReceived) -> None:
    """Drive a rollout from a command on through its deadlines and looks.

    Store and read it at every step.
    """
    rollout, _ = decide(rollout, command, _NOW)
    tests: SequentialTests = decode_tests(b"")
    for _ in range(_LONGEST_LIFE):
        if rollout is None:
            return
        written = rollout_to_json(rollout)
        assert rollout_from_json(written) == rollout
        percent_to_serve(rollout)
        deadline = next_deadline(rollout)
        at = max(deadline or rollout.updated_at, rollout.updated_at)
        if rollout.visits and rollout.stage_index is not None:
            evidence = make_evidence(at=at)
            check_harm(rollout, evidence, tests, at)
            judgement, tests = judge(rollout, evidence, tests, at)
            rollout, _ = decide(rollout, EvidenceJudged(judgement), at)
            assert rollout is not None
        before = rollout
        rollout, _ = decide(rollout, Ticked(), at)
        if deadline is None and rollout is before:
            return


# --- what is stored ---

_ROLLOUT_DOCUMENTS: list[bytes] = []


def rollout_documents(material: Hostile) -> str:
    """Read a stored rollout document; one that is read is served and goes on."""
    if not _ROLLOUT_DOCUMENTS:
        _ROLLOUT_DOCUMENTS.extend(rollout_to_json(rollout) for rollout in honest.rollouts())
    document = json.loads(material.dice.choice(_ROLLOUT_DOCUMENTS))
    is_stored = material.dice.random() < 0.5
    written = material.bytes_of(
        document if is_stored else {"type": "io.rolloutd.state.v1", "data": document}
    )
    try:
        with material.timed():
            rollout = (rollout_from_json if is_stored else read_state)(written)
    except DocumentUnreadable as fault:
        return _refused(fault)
    board = FlagBoard(generation=Generation.V3)
    board.update(rollout)
    board.trust()
    board.flagd_document()
    for flag in board.flags:
        flag.evaluate("user-1", {"plan": "pro", "age": 20})
    FlagsToCount().count_for(rollout)
    next_deadline(rollout)
    decide(rollout, Ticked(), _NOW)
    return "served"


def stored_totals(material: Hostile) -> str:
    """Read the totals of two partitions of which one is damaged.

    The other one's are still there.
    """
    now = datetime.now(UTC)
    directory = _directory(now)
    totals = _totals(directory, counts_exposures=True)
    now_ms = int(now.timestamp() * 1000)
    value = _good(EventFormat.ROLLOUTD, evaluations=True)
    _fold(
        totals,
        [Record("t", 0, 0, now_ms, None, value, [])],
        EventFormat.ROLLOUTD,
        evaluations=True,
        now_ms=now_ms,
    )
    changes = Changes()
    for _ in totals.drain_changes(changes):
        pass
    stored = {
        "next": b"1",
        "format": b"2",
        "digest": b"0",
        **changes.fields,
        **encode_progress(totals.progress),
    }
    damaged = dict(stored)
    for _ in range(material.dice.choice((1, 1, 2, 5))):
        name = material.dice.choice(list(damaged) or ["next"])
        match material.dice.randrange(5):
            case 0:
                damaged.pop(name, None)
            case 1:
                damaged[material.text()] = damaged.pop(name, b"")
            case 2:
                damaged[name] = str(material.integer()).encode()
            case 3:
                damaged[name] = material.dumps(material.value())
            case _:
                damaged[name] = material.torn(damaged.get(name, b""))
    store = MemoryTotals()
    store.hashes = {"t/0/1": stored, "t/1/1": damaged}
    found, progress = asyncio.run(
        store.read(["t/0/1", "t/1/1"], {"new-checkout": ("start-1", [0])})
    )[:2]
    assert any(each.topic_partition == "t/0" for each in progress), (
        "the partition that is whole is not reported"
    )
    assert found["new-checkout"][0].treatment.exposures >= 1, (
        "the partition that is whole is not counted"
    )
    try:
        loaded = asyncio.run(store.load("t/1/1"))
        if loaded.next_offset is None:
            return "empty"
        _totals(directory, counts_exposures=True).restore(loaded.next_offset, loaded.fields)
    except BrokenInvariant as fault:
        return _refused(fault)
    return "read"


# --- answers ---


def model_answers(material: Hostile) -> str:
    """Read what a model wrote in place of advice."""
    content = material.bytes_of(honest.advice()).decode("utf-8", "replace")
    if material.dice.random() < 0.3:
        fences = ("```json\n{}\n```", "Sure! {}", "{} {}", "<think>hmm</think>{}")
        content = material.dice.choice(fences).replace("{}", content)
    try:
        with material.timed():
            answer = parse_form(content, AdviceAnswer)
    except ValueError as fault:
        return _refused(fault)
    assert 0 <= answer.confidence <= 100
    assert answer.verdict in ("proceed", "hold", "roll_back")
    return "advice"


class Ofrep:
    """OFREP over the application itself, without a socket."""

    def __init__(self) -> None:
        board = FlagBoard(generation=Generation.V3)
        for rollout in honest.rollouts():
            board.update(replace(rollout, flag_key=f"flag-{rollout.phase.name}"))
        board.trust()
        app = make_app(
            board,
            Health(["x"]),
            Metrics(version="1"),
            describe=lambda _: b"{}",
            reports=no_reports(),
        )
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self._loop = asyncio.new_event_loop()

    def __call__(self, material: Hostile) -> str:
        """Put one hostile request; whatever it is, the answer is one of ours."""
        path = material.dice.choice(
            ("/flag-baking", "", "/flag-gating", "/" + "a" * 3_000, "/%00", "/flag-baking/x")
        )
        content = material.bytes_of(honest.ofrep())
        with material.timed():
            posting = self._client.post(f"/ofrep/v1/evaluate/flags{path}", content=content)
            answer = self._loop.run_until_complete(posting)
        assert answer.status_code in (200, 304, 400, 404, 408, 413, 429), answer.text
        answer.json()
        return str(answer.status_code)

    def close(self) -> None:
        """Close the client and its loop."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


EDGES: Mapping[str, Edge] = {
    "evaluations": _counted(EventFormat.ROLLOUTD, evaluations=True, make=_maybe(honest.evaluation)),
    "outcomes": _counted(EventFormat.ROLLOUTD, evaluations=False, make=_maybe(honest.outcome)),
    "otlp logs": _counted(EventFormat.OTLP_JSON, evaluations=True, make=_maybe(honest.otlp_logs)),
    "otlp spans": _counted(
        EventFormat.OTLP_JSON, evaluations=False, make=_maybe(honest.otlp_spans)
    ),
    "go feature flag": _counted(
        EventFormat.GO_FEATURE_FLAG, evaluations=True, make=_maybe(honest.go_feature_flag)
    ),
    "commands": commands,
    "plans": plans,
    "rollout documents": rollout_documents,
    "stored totals": stored_totals,
    "model answers": model_answers,
}

#: Records in one case of an edge, where it is more than one.
RECORDS_OF: Mapping[str, int] = dict.fromkeys(
    ("evaluations", "outcomes", "otlp logs", "otlp spans", "go feature flag"), _RECORDS_AT_ONCE
)
