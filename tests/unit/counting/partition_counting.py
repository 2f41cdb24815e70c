"""Totals of one partition that tests feed with records."""

from __future__ import annotations

from datetime import datetime

from controller.counting.folding.flags_to_count import FlagsToCount
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
)
from tests.builders import (
    MINUTE,
    T0,
    make_guardrail,
    make_plan,
    make_rollout,
)
from tests.records import Owner, arms_in, at_ms, evaluation_value, make_record, outcome_value

ON, OFF = ("new-checkout", "on"), ("new-checkout", "off")


AT = T0 + 10 * MINUTE


TREATMENT, CONTROL = ("new-checkout", 0, "treatment"), ("new-checkout", 0, "control")


def make_directory() -> FlagsToCount:
    """Return a directory of one flag whose plan names one conversion."""
    guardrails = (make_guardrail(), make_guardrail(metric="conversion:paid"))
    directory = FlagsToCount()
    directory.count_for(make_rollout(plan=make_plan(guardrails=guardrails)))
    return directory


class Counting:
    """One partition that is fed values and saved at will."""

    def __init__(
        self,
        *,
        evaluations: bool = False,
        directory: FlagsToCount | None = None,
        flags_with_own_fields: int = 250,
    ) -> None:
        self.directory = directory or make_directory()
        self.flags_with_own_fields = flags_with_own_fields
        self.stored: dict[str, bytes] = {}
        self.evaluations = evaluations
        self.owner = self.load()

    def load(self) -> Owner:
        return Owner(
            self.directory,
            counts_exposures=self.evaluations,
            stored=self.stored,
            flags_with_own_fields=self.flags_with_own_fields,
        )

    def batch(self, *values: bytes | None, partner: Owner | None = None) -> None:
        """Fold values as one batch, save, and pass their evaluations on."""
        position = self.owner.totals.position
        records = [make_record(position + number, value) for number, value in enumerate(values)]
        self.owner.fold(records, partner=None if partner is None else partner.totals)
        assert self.owner.save(self.stored)
        for _ in self.owner.totals.note_evaluations():
            pass

    @property
    def arms(self) -> dict[tuple[str, int, str], ArmCounts]:
        return arms_in(self.stored)

    @property
    def records(self) -> PartitionCounts:
        return self.owner.totals.progress


def outcome(context: str, *flags: tuple[str, str], at: datetime = AT, **more: object) -> bytes:
    """Return an outcome's value."""
    return outcome_value(context, time_ms=at_ms(at), flags=flags, **more)  # type: ignore[arg-type]


def evaluation(context: str, variant: str, at: datetime = AT) -> bytes:
    """Return an evaluation's value."""
    return evaluation_value(context, variant, time_ms=at_ms(at))
