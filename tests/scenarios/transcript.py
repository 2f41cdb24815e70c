"""Reads and plays transcripts: commands, `----`, and what the machine did, block by block.

    plan KEY=VALUE ...      what the next `start` starts; see `_plan`
    at Tue 09:30            set the clock, in the week of `T0` (Monday 5 January 2026); `+1w` after
                            it is the next week
    wake                    set the clock to the rollout's deadline, and tick
    tick                    time went by until now
    judge pass|inconclusive|signal|breach|GAP [for=10m]   new evidence; for how long with that gap
    advice proceed|hold|roll_back|none            the model's answer to the last question
    restarted               another process took over
    VERB [expected=N] [age=11m] [to=STAGE]        a command

Answers, decisions, alerts and questions are printed in the order of the lines that caused them,
then the state at the end of the block.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.analysis.sequential_tests import GapTime
from controller.core.effects import AnswerCommand, AskAdvice, Effect, PublishDecision, RaiseAlert
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
    Restarted,
    Ticked,
)
from controller.core.judging.judgement import Gap, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import DEFAULT_GAP_POLICIES, AdvisorPolicy, Plan, Window
from controller.core.rollout import Gating, Paused, Rollout, Scheduled
from schemas.command import TAKES_PLAN
from schemas.fields import parse_duration
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    Approval,
    CommandVerb,
    GapPolicy,
    HealthGap,
    MetricRole,
    OnBreach,
    Verdict,
)
from tests.builders import (
    T0,
    make_advice,
    make_breach,
    make_guardrail,
    make_judgement,
    make_plan,
    make_report,
    make_stage,
)

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MIDNIGHT = T0.replace(hour=0, minute=0)


def play(text: str) -> str:
    """Return the transcript with the same comments and commands, and the machine's new results."""
    player = Player()
    return (
        "\n\n".join(_play_block(player, block) for block in text.strip("\n").split("\n\n")) + "\n"
    )


def _play_block(player: Player, block: str) -> str:
    commands = []
    for line in block.split("\n"):
        if line == "----":
            break
        commands.append(line)
    if all(line.startswith("#") for line in commands):
        return "\n".join(commands)
    said = []
    for line in commands:
        if not line.startswith("#"):
            said += player.obey(line)
    return "\n".join([*commands, "----", *said, player.state()])


class Player:
    """One flag, its clock, and the words a transcript is written in."""

    def __init__(self) -> None:
        self._now = T0
        self._plan = make_plan()
        self._rollout: Rollout | None = None
        self._asked: AskAdvice | None = None
        self._commands = 0

    def obey(self, line: str) -> list[str]:
        """Carry out one line; return what the machine did."""
        word, *rest = line.split()
        if word == "plan":
            self._plan = _plan(dict(part.split("=", 1) for part in rest))
            return []
        if word == "at":
            self._now = _moment(rest)
            return []
        if word == "wake":
            deadline = None if self._rollout is None else next_deadline(self._rollout)
            if deadline is None:
                return ["nothing to wake for"]
            self._now = max(deadline, self._now)
            return [f"it is {_when(self._now)}", *self._decide(Ticked())]
        return self._decide(self._event(word, rest))

    def state(self) -> str:
        """Return where the rollout is, in one line."""
        rollout = self._rollout
        if rollout is None:
            return "no rollout"
        phase = rollout.phase
        words = [f"r{rollout.revision}", f"{rollout.percent:g} %", phase.name.value]
        if isinstance(phase, Paused):
            words.append(f"in {phase.held.name}")
        if isinstance(phase, Scheduled):
            words.append(f"for {_when(phase.start_at)}")
        if rollout.hold is not None:
            words.append(f"hold={rollout.hold}")
        if isinstance(phase, Gating) and phase.advice is not None:
            round_ = phase.advice
            words.append(f"advice round {round_.number} {'closed' if round_.is_closed else 'open'}")
        if rollout.freeze is not None:
            words.append("frozen")
        if rollout.closed_since is not None:
            words.append(f"closed since {_when(rollout.closed_since)}")
        deadline = next_deadline(rollout)
        if deadline is not None:
            words.append(f"until {_when(deadline)}")
        return "= " + ", ".join(words)

    def _decide(self, event: Event) -> list[str]:
        self._rollout, effects = decide(self._rollout, event, self._now)
        for effect in effects:
            if isinstance(effect, AskAdvice):
                self._asked = effect
        return [f"  {_say(effect)}" for effect in effects]

    def _event(self, word: str, rest: list[str]) -> Event:
        match word:
            case "tick":
                return Ticked()
            case "restarted":
                return Restarted()
            case "judge":
                visit = 0 if self._rollout is None else self._rollout.visit_index
                what, *options = rest
                lasted = dict(part.split("=", 1) for part in options).get("for", "0s")
                seen = _judgement(what, visit, self._now, self._plan)
                seconds = parse_duration(lasted).total_seconds()
                times = {gap.kind: GapTime(seconds) for gap in seen.gaps}
                return EvidenceJudged(replace(seen, gap_times=times))
            case "advice":
                asked = self._asked
                if asked is None:
                    raise ValueError("nothing was asked")
                if rest[0] == "none":
                    return AdviceUnavailable(asked.gate_id, asked.round, "no answer")
                return AdviceReceived(
                    asked.gate_id, asked.round, make_advice(AdviceChoice(rest[0]))
                )
            case _:
                return self._command(CommandVerb(word), dict(part.split("=", 1) for part in rest))

    def _command(self, verb: CommandVerb, options: dict[str, str]) -> CommandReceived:
        self._commands += 1
        expected = options.get("expected")
        return CommandReceived(
            command_id=options.get("id", f"c{self._commands}"),
            verb=verb,
            issuer="ada",
            reason="because",
            issued_at=self._now - parse_duration(options.get("age", "0s")),
            expected_revision=None if expected is None else int(expected),
            plan=self._plan if verb in TAKES_PLAN - {CommandVerb.RESTART} else None,
            to_stage=options.get("to"),
        )


def _plan(options: dict[str, str]) -> Plan:
    """Return a plan of stages=10,50,100 with bake=10m after settle 1m, and max_bake=1h.

    limit=0.05 is that of the error rate;
    approval=10,50 names percentages; advisor=MODE asks twice, 5 min apart, with 30 s each;
    on_breach=POLICY; GAP=POLICY; grace=5m for all gaps; weekend=ZONE freezes Saturday and Sunday;
    active=9-17 is active at these hours, UTC, on Monday to Friday;
    start=TIME, ends=TIME and expires=TIME as Day-HH:MM.
    """
    approvals = options.pop("approval", "").split(",")
    stages = tuple(
        make_stage(
            percent=float(percent),
            approval=Approval.REQUIRED if percent in approvals else Approval.NOT_REQUIRED,
            bake=parse_duration(options.get("bake", "10m")),
            max_bake=parse_duration(options.get("max_bake", "1h")),
        )
        for percent in options.pop("stages", "10,50,100").split(",")
    )
    options.pop("max_bake", None)
    options.pop("bake", None)
    mode = AdvisorMode(options.pop("advisor", "off"))
    advisor = AdvisorPolicy(
        mode, deadline=timedelta(seconds=30), hold_rounds=3, hold_for=timedelta(minutes=5)
    )
    zone = options.pop("weekend", None)
    windows = () if zone is None else (Window(frozenset({6, 7}), 0, 24 * 60, zone),)
    hours = [int(hour) for hour in options.pop("active", "0-0").split("-")]
    office = Window(frozenset(range(1, 6)), 60 * hours[0], 60 * (hours[1] - hours[0]), "UTC")
    guardrail = make_guardrail(
        on_breach=OnBreach(options.pop("on_breach", "roll_back")),
        limit=float(options.pop("limit", "0.05")),
    )
    grace = parse_duration(options.pop("grace", "5m"))
    start, expires = options.pop("start", None), options.pop("expires", None)
    ends = options.pop("ends", None)
    policies = {HealthGap(gap): GapPolicy(policy) for gap, policy in options.items()}
    return make_plan(
        stages=stages,
        guardrails=(guardrail,),
        advisor=advisor,
        freeze_windows=windows,
        active=(office,) if office.minutes else (),
        gap_policies={**DEFAULT_GAP_POLICIES, **policies},
        health_grace=grace,
        start_at=None if start is None else _moment(start.split("-")),
        ends_at=None if ends is None else _moment(ends.split("-")),
        expires_at=None if expires is None else _moment(expires.split("-")),
    )


def _judgement(what: str, visit: int, now: datetime, plan: Plan) -> Judgement:
    gaps: tuple[Gap, ...] = ()
    match what:
        case "pass":
            metrics = (make_report(),)
        case "inconclusive":
            metrics = (make_report(safe=Verdict.INCONCLUSIVE, reason="too close to call"),)
        case "signal":
            metrics = (
                make_report(
                    role=MetricRole.SIGNAL, harm=Verdict.FAIL, safe=Verdict.FAIL, reason="p90 rose"
                ),
            )
        case "breach":
            metrics = (make_breach(on_breach=plan.guardrails[0].on_breach),)
        case "drift":
            metrics, gaps = (
                (make_report(),),
                (Gap(HealthGap.ACTUATION_DRIFT, "nobody follows", is_observed=True),),
            )
        case gap:
            metrics, gaps = (make_report(),), (Gap(HealthGap(gap), "for a test"),)
    return make_judgement(visit=visit, at=now, metrics=metrics, gaps=gaps)


def _say(effect: Effect) -> str:
    match effect:
        case PublishDecision():
            move = (
                ""
                if effect.from_percent == effect.to_percent
                else f" {effect.from_percent:g} -> {effect.to_percent:g} %"
            )
            advice = "" if effect.advice is None else f" [advice: {effect.advice.choice}]"
            return f"decision {effect.kind}{move} by {effect.issuer}: {effect.reason}{advice}"
        case RaiseAlert():
            return f"alert {effect.severity} {effect.kind}: {effect.action}"
        case AnswerCommand():
            return f"{effect.status} {effect.verb} at r{effect.revision}: {effect.reason}"
        case AskAdvice():
            return (
                f"ask round {effect.round} of gate {effect.gate_id} until "
                f"{_when(effect.until, seconds=True)}"
            )


def _moment(words: list[str]) -> datetime:
    day, clock, *later = words
    weeks = int(later[0].removeprefix("+").removesuffix("w")) if later else 0
    parts = [int(part) for part in clock.split(":")]
    hour, minute, second = (*parts, 0)[:3] if len(parts) == 2 else parts
    return _MIDNIGHT + timedelta(
        weeks=weeks, days=_DAYS.index(day), hours=hour, minutes=minute, seconds=second
    )


def _when(moment: datetime, *, seconds: bool = False) -> str:
    weeks, day = divmod((moment - _MIDNIGHT).days, 7)
    clock = f"{moment:%H:%M:%S}" if seconds or moment.second else f"{moment:%H:%M}"
    return f"{_DAYS[day]} {clock}" + (f" +{weeks}w" if weeks else "")
