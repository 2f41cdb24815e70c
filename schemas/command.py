"""Commands from operators, on `rollout.commands`, keyed by flag."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from schemas.envelope import without_control_characters
from schemas.fields import Count, Line, Moment, Name, StrictModel
from schemas.plan import PlanDocument
from schemas.terms import CommandVerb

TYPE = "io.rolloutd.command.v1"

#: Verbs that skip a gate or stop a rollout for everybody: the audit log must say why.
NEEDS_REASON = frozenset(
    {
        CommandVerb.PROMOTE,
        CommandVerb.PROMOTE_FULL,
        CommandVerb.FREEZE,
        CommandVerb.RETRY,
        CommandVerb.RETIRE,
    }
)


def needs_reason(verb: CommandVerb, to_stage: str | None) -> bool:
    """Return whether a command needs a reason whatever the rollout is; a jump needs one too."""
    return to_stage is not None or verb in NEEDS_REASON


#: Verbs that a plan comes with.
TAKES_PLAN = frozenset({CommandVerb.START, CommandVerb.RESTART, CommandVerb.APPLY})
NEEDS_PLAN = frozenset({CommandVerb.START, CommandVerb.APPLY})


#: The issuer of decisions that no operator requested. The audit log and the statistics of advice
#: rely on this name.
CONTROLLER_NAME = "rolloutd"


def _not_the_controller(issuer: str) -> str:
    """Refuse a blank name, and the controller's own, also in letters that only look like it."""
    if not issuer.strip():
        raise ValueError("issuer is blank; name who sends the command")
    plain = unicodedata.normalize("NFKC", issuer).casefold()
    name = "".join(char for char in plain if char.isalnum() or char in ":/")
    if name == CONTROLLER_NAME or name.startswith((f"{CONTROLLER_NAME}:", f"{CONTROLLER_NAME}/")):
        raise ValueError(f"issuer {CONTROLLER_NAME!r} is the controller's own name; give yours")
    return issuer


Issuer = Annotated[
    str,
    Field(min_length=1, max_length=200),
    AfterValidator(without_control_characters),
    AfterValidator(_not_the_controller),
]


StageName = Annotated[
    str, Field(max_length=300, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:%-]*$", examples=["canary"])
]
"""The name of a stage, given by the plan's author or made of its share."""


class Command(StrictModel):
    """One command. Its id gets exactly one result on `rollout.results`, also when it is read again.

    An id belongs to its flag and to its content: verb, issuer, reason, expected_revision, plan and
    to_stage.
    The same command again gets the same result. A different command under the same id is rejected,
    with a result whose event has an id of its own. But pause, roll_back and abort are always
    carried out, also under a used id and when they were issued at another time.
    """

    id: Name = Field(
        description="Chosen by the issuer; never used again among the commands of its flag."
    )
    flag: Name = Field(description="The flag's key; also the record's key.")
    verb: CommandVerb
    issuer: Issuer = Field(
        description="A person or a system. Not `rolloutd`, the controller's own name."
    )
    reason: Line = Field(
        default="",
        description="Required for promote, promote_full, freeze, retry, retire, and for an apply "
        "that makes anything less careful or begins the present stage again.",
    )
    issued_at: Moment = Field(
        description="A command that could raise the percentage is refused when it is older than "
        "ten minutes. One that lowers or holds is refused when it is older than a day, or when it "
        "is read again and was issued more than five minutes before the present rollout began; "
        "unless it names the present revision."
    )
    expected_revision: Count | None = Field(
        default=None,
        description="The revision of the rollout that the issuer knows. The command is rejected "
        "if the rollout has another one. Required for approve, and for an apply that makes "
        "anything less careful or begins the present stage again, and for a retire of one that "
        "serves more than 0 %; ignored by pause, roll_back and abort, which always work.",
    )
    plan: PlanDocument | None = Field(
        default=None,
        description="Required for start and apply. Optional for restart, where it replaces the "
        "pinned plan.",
    )
    to_stage: StageName | None = Field(
        default=None,
        description="For promote and step_back: the name of the stage to enter, or its share as "
        "in `10%`. null: the next stage, and the one below.",
    )

    @model_validator(mode="after")
    def _has_what_its_verb_needs(self) -> Command:
        """Refuse a command that lacks what its verb needs, or has what it does not take."""
        if self.verb is CommandVerb.APPROVE and self.expected_revision is None:
            raise ValueError("approve needs `expected_revision`: an approval is for one revision")
        if self.verb in NEEDS_PLAN and self.plan is None:
            raise ValueError(f"{self.verb} needs a `plan`")
        if self.plan is not None and self.verb not in TAKES_PLAN:
            raise ValueError(f"{self.verb} takes no `plan`")
        if self.plan is not None and self.plan.flag != self.flag:
            raise ValueError(f"the plan is for flag {self.plan.flag}, the command for {self.flag}")
        jump = "" if self.to_stage is None else f" to {self.to_stage}"
        if jump and self.verb not in (CommandVerb.PROMOTE, CommandVerb.STEP_BACK):
            raise ValueError(f"{self.verb} takes no `to_stage`")
        if needs_reason(self.verb, self.to_stage) and not self.reason.strip():
            raise ValueError(f"{self.verb}{jump} needs a `reason`: the audit log keeps why")
        return self
