"""The terms of rolloutd, with one meaning each in code, logs, topics and metrics.

Standard library only, because the pure core uses these terms too. Their values are what is on the
wire.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, Literal, get_args

#: What a flag key, a variant name, a metric name or a command id may look like. An allow-list, so
#: that a key can be part of a Redis field, a URL path and a metric label without escaping. `|` and
#: `/` separate our own fields.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
NAME = re.compile(NAME_PATTERN + r"\Z")

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: Final[tuple[Weekday, ...]] = get_args(Weekday)


class Arm(StrEnum):
    """The two arms that are compared."""

    TREATMENT = "treatment"
    CONTROL = "control"


class PhaseName(StrEnum):
    """Where a rollout is."""

    SCHEDULED = "scheduled"
    BAKING = "baking"
    GATING = "gating"
    AWAITING_APPROVAL = "awaiting_approval"
    PAUSED = "paused"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    RETIRED = "retired"  # let go: rolloutd serves nothing for the flag any more


class DecisionKind(StrEnum):
    """What the controller does."""

    ADVANCE = "advance"
    HOLD = "hold"
    PAUSE = "pause"
    STEP_BACK = "step_back"
    ROLL_BACK = "roll_back"
    COMPLETE = "complete"
    START = "start"
    RESUME = "resume"
    ABORT = "abort"
    END = "end"  # the plan's end has come: 0 % is served
    APPLY = "apply"  # the plan was changed
    RETRY = "retry"  # the stage begins again
    CLOSE = "close"  # an active window of the plan is over: 0 % is served until the next one
    OPEN = "open"  # an active window has begun: what was decided before is served again
    RETIRE = "retire"  # rolloutd lets go of the flag


class CommandVerb(StrEnum):
    """What an operator may command."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    APPROVE = "approve"
    REJECT = "reject"
    PROMOTE = "promote"
    PROMOTE_FULL = "promote_full"
    STEP_BACK = "step_back"
    ROLL_BACK = "roll_back"
    ABORT = "abort"
    RESTART = "restart"
    FREEZE = "freeze"
    UNFREEZE = "unfreeze"
    APPLY = "apply"
    RETRY = "retry"
    RETIRE = "retire"


#: What people type by hand for a verb, with `_` for `-` and spaces.
_ALIASES = {"rollback": CommandVerb.ROLL_BACK, "kill": CommandVerb.ROLL_BACK}
_VERBS = {verb.value: verb for verb in CommandVerb} | _ALIASES


def verb_named(name: object) -> CommandVerb | None:
    """Return the verb that a command names, in any usual spelling; None when there is none."""
    if not isinstance(name, str):
        return None
    return _VERBS.get(name.strip().lower().replace("-", "_").replace(" ", "_"))


#: Verbs that end in 0 %. In the queue of their flag they pass every command but each other and the
#: starting ones.
FINAL = frozenset({CommandVerb.ROLL_BACK, CommandVerb.ABORT})

#: Verbs that only lower or keep the percentage. They work whatever revision the operator knows.
ALWAYS_ACCEPTED = frozenset({CommandVerb.PAUSE, CommandVerb.ROLL_BACK, CommandVerb.ABORT})


class Verdict(StrEnum):
    """The verdict about a metric or a gate. The four are never merged."""

    PASS = "pass"  # noqa: S105  # a verdict
    FAIL = "fail"  # measured, bad
    INCONCLUSIVE = "inconclusive"  # measured, undecided
    NO_DATA = "no_data"  # nothing measured


class _StrongestFirst(StrEnum):
    """What is done about something: the members are in order, the strongest first."""

    @property
    def strength(self) -> int:
        """Higher for what does more; 0 for the last member."""
        return len(type(self)) - 1 - list(type(self)).index(self)


class MetricRole(_StrongestFirst):
    """What a regression of the metric does, the strongest first."""

    GUARDRAIL = "guardrail"  # rolls back
    SIGNAL = "signal"  # holds
    OBSERVE = "observe"  # is only reported


class OnBreach(_StrongestFirst):
    """What a breached guardrail does, the strongest first."""

    ROLL_BACK = "roll_back"
    STEP_BACK = "step_back"
    PAUSE = "pause"


class HealthGap(StrEnum):
    """Why the evidence cannot be judged yet; each has its own policy."""

    NO_TRAFFIC = "no_traffic"  # no exposures in an arm
    NO_OUTCOMES = "no_outcomes"  # exposures arrive, but no outcomes, or too few of treatment
    BELOW_MIN_SAMPLE = "below_min_sample"
    STALE = "stale"  # the freshest event is old, or the consumer lags
    SRM = "srm"  # sample ratio mismatch: the share of treatment is not the decided one
    MULTIPLE_EXPOSURE = "multiple_exposure"  # the same contexts were in both arms of one stage
    REPEATED_OUTCOMES = "repeated_outcomes"  # outcomes arrive again, byte for byte
    IMPLAUSIBLE_LATENCY = "implausible_latency"  # control's durations are far beyond a limit, too
    ACTUATION_DRIFT = "actuation_drift"  # a flag plane does not serve the decided percentage
    TAINTED = "tainted"  # records of this stage are known to be lost
    # An external metric, see `schemas/external.py`, gives no number to judge:
    METRIC_NO_DATA = "metric_no_data"  # its query finds no series
    METRIC_NOT_A_NUMBER = "metric_not_a_number"  # NaN or infinite
    METRIC_SEVERAL_SERIES = "metric_several_series"  # one is needed
    METRIC_LATE = "metric_late"  # its newest sample, or the answer, is old
    METRIC_REFUSED = "metric_refused"  # an error in place of an answer, or a cut answer
    METRIC_NO_ANSWER = "metric_no_answer"  # none in time, none yet, or no connection
    # A gate webhook, see `schemas/gate_webhooks.py`, gives no answer that could be followed:
    WEBHOOK_NO_ANSWER = "webhook_no_answer"  # none in time, or no connection
    WEBHOOK_HTTP_ERROR = "webhook_http_error"  # a status other than 2xx and 3xx
    WEBHOOK_REDIRECT = "webhook_redirect"  # it points elsewhere, which is never followed
    WEBHOOK_TOO_LARGE = "webhook_too_large"
    WEBHOOK_WRONG_TYPE = "webhook_wrong_type"  # it is not sent as JSON
    WEBHOOK_MALFORMED = "webhook_malformed"  # no JSON object with a known `answer`
    WEBHOOK_NOT_SET = "webhook_not_set"  # the settings have no endpoint of this name


#: What only a plan with external metrics can have.
METRIC_GAPS = tuple(gap for gap in HealthGap if gap.value.startswith("metric_"))
#: What only a plan with gate webhooks can have, and only at a gate.
WEBHOOK_GAPS = tuple(gap for gap in HealthGap if gap.value.startswith("webhook_"))


class GateAnswer(StrEnum):
    """What a gate webhook answers. None of them raises a percentage."""

    PASS = "pass"  # noqa: S105  # an answer: nothing of its own stands in the way
    HOLD = "hold"  # not now: it is asked again
    FAIL = "fail"  # what the plan says: a person decides, or it goes down


class MeasurementGap(StrEnum):
    """Why a monitoring system gives no number. Each reason has its name, and none is a zero."""

    NO_DATA = "no_data"  # nothing was measured: no series, no monitor
    NOT_A_NUMBER = "not_a_number"  # NaN or infinite, such as zero by zero
    SEVERAL_SERIES = "several_series"  # the question is about one
    REFUSED = "refused"  # an error: a wrong query, a wrong token, a server that fails
    NO_ANSWER = "no_answer"  # none in time, or no connection
    LATE = "late"  # the newest sample is too old, or the answer was given long ago
    INCOMPLETE = "incomplete"  # a part is left out, as the server warns
    PAUSED = "paused"  # the monitor is paused or in maintenance


class GapPolicy(StrEnum):
    """What a health gap does once it has lasted for the plan's `health_grace`."""

    WAIT = "wait"  # hold and alert; a gate pauses after max_bake
    PAUSE = "pause"
    ROLL_BACK = "roll_back"


class HoldReason(StrEnum):
    """Why a rollout stays in its stage after the bake, or why it is paused."""

    HEALTH = "health"
    INCONCLUSIVE = "inconclusive"
    SIGNAL = "signal"
    ADVISOR = "advisor"
    WEBHOOK = "webhook"
    APPROVAL = "approval"
    FROZEN = "frozen"
    MAX_BAKE = "max_bake"
    OPERATOR = "operator"
    REJECTED = "rejected"
    BREACH = "breach"
    EXPIRED = "expired"
    OSCILLATES = "oscillates"


class Safe(StrEnum):
    """The answer to "is it safe to advance?"."""

    YES = "yes"
    NOT_YET = "not_yet"
    NO = "no"
    ENDED = "ended"

    @property
    def words(self) -> str:
        """The answer as people read it."""
        return self.value.replace("_", " ")


class ChangeEffect(StrEnum):
    """What a change of a running plan does; the strongest comes last."""

    AT_ONCE = "at_once"  # not less careful: the present stage goes on with its evidence
    LOWERS = "lowers"  # the present stage serves less at once and starts again: needs both
    NEEDS_REASON = "needs_reason"  # less careful later: needs a reason and the revision
    RESTARTS = "restarts"  # less careful now: needs both, and the present stage starts again
    REFUSED = "refused"  # not in a running rollout


class FlagType(StrEnum):
    """The purpose of a flag, which decides how long it lives and what its switch does."""

    RELEASE = "release"  # brings a change to everybody, then is removed
    EXPERIMENT = "experiment"  # compares variants, then is removed
    OPS = "ops"  # stays: switches a costly or risky part off in an emergency
    PERMISSION = "permission"  # stays: who may use something


class ControlArm(StrEnum):
    """The contexts that are compared with treatment."""

    REST = "rest"  # everybody of the stage's audience who is not in treatment
    EQUAL = "equal"  # as many as are in treatment; the others are not counted


class Operator(StrEnum):
    """How an attribute of a context is compared.

    See `controller.core.audience` for what each means exactly.
    """

    EQ = "eq"
    IN = "in"
    GTE = "gte"
    LTE = "lte"
    STARTS_WITH = "starts_with"
    ENDS_WITH = "ends_with"
    SEM_VER = "sem_ver"
    BEFORE = "before"
    AFTER = "after"


class AdvisorMode(StrEnum):
    """What advice may do. It can never advance a failing gate, roll back, or delay a breach."""

    OFF = "off"
    OBSERVE = "observe"  # recorded
    CAN_HOLD = "can_hold"  # may hold for a bounded number of rounds, then a person decides
    REQUIRED = "required"  # its `proceed` is needed


class AdviceChoice(StrEnum):
    """The model's opinion."""

    PROCEED = "proceed"
    HOLD = "hold"
    ROLL_BACK = "roll_back"


class Approval(StrEnum):
    """Whether a person must agree before a stage is left."""

    NOT_REQUIRED = "not_required"
    REQUIRED = "required"


class Severity(StrEnum):
    """How urgently people are needed."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class SignalStatus(StrEnum):
    """What a monitoring system says of a condition."""

    FIRING = "firing"
    RESOLVED = "resolved"
    NOTE = "note"  # something else about it, such as that somebody acknowledged it


class NotificationRequest(StrEnum):
    """What somebody asks of the notifications."""

    ACKNOWLEDGE = "acknowledge"  # somebody takes an incident: nobody else is told of it
    TEST = "test"  # send a message along a route
    RETRY = "retry"  # send what a channel had refused again
    MUTE = "mute"  # tell nobody of some flags, or nobody by a route, for some time
    UNMUTE = "unmute"  # end a mute


class SignalAction(_StrongestFirst):
    """What a signal does to a flag, the strongest first. None of them raises a percentage."""

    ROLL_BACK = "roll_back"
    STEP_BACK = "step_back"
    PAUSE = "pause"
    HOLD = "hold"  # freeze it, until no condition that holds it fires any more
    NOTE = "note"  # tell people, and do nothing


class AlertKind(StrEnum):
    """What an alert is about."""

    ROLLED_BACK = "rolled_back"
    PREFLIGHT = "preflight"  # a rollout was started, and something that it needs is not there
    ENDED = "ended"  # the plan's end has come: 0 % is served
    ABORTED = "aborted"  # an operator ended the rollout: 0 % is served
    STEPPED_BACK = "stepped_back"
    PAUSED = "paused"
    BREACH = "breach"  # of another guardrail during the pause of the first; info: it is over
    APPROVAL_NEEDED = "approval_needed"
    ADVISOR_HOLDS = "advisor_holds"
    WEBHOOK_HOLDS = "webhook_holds"  # a gate webhook answers `hold`
    HEALTH_GAP = "health_gap"
    SIGNAL_REGRESSION = "signal_regression"
    SRM = "srm"
    NOT_ACTUATED = "not_actuated"
    FOREIGN_EDIT = "foreign_edit"  # a flag was changed in its plane, but not by rolloutd
    COMPLETED = "completed"
    RETIRED = "retired"  # rolloutd let go of a flag: apps get the default of their own code
    PLAN_EXPIRED = "plan_expired"
    FORCED = "forced"  # an operator skipped a gate
    ANOMALY = "anomaly"  # an unusual change that no guardrail tests; never an action
    FLAG_BROKEN = "flag_broken"  # its worker has stopped, or what is stored for it cannot be read
    UNWATCHED = "unwatched"  # guardrails of a live stage have no evidence; info: they do again
    EVENT_FAULTS = "event_faults"  # a share of a live flag's events does not count, or misleads
    SIGNAL = "signal"  # of a monitoring system: what was done, and which flags are suspect
    FLAG_DIGEST = "flag_digest"  # once a week: how many flags to tidy up, and the first of them


class FlagFinding(StrEnum):
    """What a person should put right about a flag; each has a rule of its own in the settings."""

    STALE = "stale"  # 0 % or 100 % for long, and nothing will change it
    EXPIRED = "expired"  # the plan's `expires_at` has passed
    NO_OWNER = "no_owner"
    NAME = "name"  # its key does not fit the convention
    TOO_MANY_OF_OWNER = "too_many_of_owner"  # active flags of one owner
    TOO_MANY = "too_many"  # active flags in all
    NOT_EVALUATED = "not_evaluated"  # for long, by any app


class UseKind(StrEnum):
    """What is counted or noted about how a flag is used."""

    TREATMENT = "treatment"  # evaluations by arm, and in neither: by hour
    CONTROL = "control"
    NEITHER = "neither"
    EVALUATED = "evaluated"  # the hour of the last evaluation
    WATCHED = "watched"  # the hour since when evaluations are counted
    SUMMARY = "summary"  # last decision and lift
    UNKNOWN = "unknown"  # events of a flag that has no rollout: by hour
    DIGEST = "digest"  # of no flag: when the newest weekly digest was due


class EventFormat(StrEnum):
    """How the records of an event topic are written."""

    ROLLOUTD = "rolloutd"  # one CloudEvent a record: schemas/json
    OTLP_JSON = "otlp_json"  # what the OpenTelemetry Collector's Kafka exporter writes
    OTLP_PROTO = "otlp_proto"
    GO_FEATURE_FLAG = "go_feature_flag"  # what GO Feature Flag's Kafka exporter writes

    @property
    def is_otlp(self) -> bool:
        """Whether a record is one export of logs or spans."""
        return self in (EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO)


class RecordClass(StrEnum):
    """The one class of each record of an event partition (invariant I2)."""

    COUNTED = "counted"  # in at least one arm
    QUARANTINED = "quarantined"  # refused
    LATE = "late"  # a known flag, but outside every countable stage interval
    IGNORED = "ignored"  # no flag with a rollout


class EventClass(StrEnum):
    """What one event is for one flag: finer than the class of its record."""

    COUNTED = "counted"
    NEITHER_ARM = "neither_arm"  # a variant that the plan serves outside the comparison
    SETTLING = "settling"  # within `settle` after a change of percentage
    CLOSED = "closed"  # outside the plan's active windows, or within `settle` after it opened
    BEFORE_START = "before_start"  # its time lies before the rollout's first stage
    AFTER_END = "after_end"  # its time lies after the end of the rollout
    UNKNOWN_VARIANT = "unknown_variant"  # the plan does not have this variant
    UNKNOWN_FLAG = "unknown_flag"  # no rollout has this flag
    UNJOINED = "unjoined"  # an outcome without flags whose context has no recent exposure
    REFUSED = "refused"  # quarantined


class EventRemark(StrEnum):
    """What looks wrong about an event, whether it counts or not."""

    NO_KEY = "no_key"  # its record has no key, so its context may be in any partition
    SCATTERED = "scattered"  # its context was in another partition of the topic before
    OLD_TIME = "old_time"  # its time is minutes older than its record
    SLOW = "slow"  # it took longer than a minute: perhaps milliseconds given as seconds
    NO_ERROR_TYPE = "no_error_type"  # its status code is 500 or more, but it counts as a success
    MISNAMED_FIELD = "misnamed_field"  # a field that nothing reads was meant to be one that counts


class CommandStatus(StrEnum):
    """Whether a command was carried out."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


class QuarantineReason(StrEnum):
    """Why a record was refused."""

    TOO_LARGE = "too_large"
    EMPTY = "empty"  # a tombstone, or no value
    NOT_JSON = "not_json"
    NOT_CLOUDEVENT = "not_cloudevent"
    UNKNOWN_TYPE = "unknown_type"
    INVALID = "invalid"  # a field is missing, of the wrong type or out of range
    NO_CONTEXT = "no_context"  # neither a context id nor a record key
    BAD_TIME = "bad_time"  # outside the accepted window around the record's arrival
    #: On a topic that is set to OTLP: not an export in its encoding, or none of its signal.
    NOT_OTLP = "not_otlp"
