"""Settings of the life of flags: when they are retired, and what the inventory finds."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from controller.settings.section import Section
from schemas.terms import Weekday

Days = Annotated[float, Field(gt=0, le=3_650, allow_inf_nan=False)]


def _read_off(value: object) -> object:
    """Return `off` as it was meant: YAML reads it as false."""
    return "off" if value is False else value


StartPolicy = Annotated[Literal["off", "warn", "refuse"], BeforeValidator(_read_off)]


class StartRulesSettings(Section):
    """What a `start` that is against a rule of `flags` gets, and a `restart` with another plan.

    `off`: nothing. `warn`: it is accepted, and its result says what is against the rules. `refuse`:
    it is rejected with what to change. A rule that is not set is never broken.
    """

    name: StartPolicy = "warn"
    """A flag key that does not fit `name_pattern`."""
    alike: StartPolicy = "warn"
    """A flag key that differs from another flag's only in upper and lower case or separators."""
    no_owner: StartPolicy = "warn"
    """A plan without an owner, with `needs_owner`."""
    too_many_of_owner: StartPolicy = "warn"
    """One more active flag of an owner than `most_active_per_owner`."""
    too_many: StartPolicy = "warn"
    """One more active flag in all than `most_active`."""


class FlagsSettings(Section):
    """The life of flags. See ops/flags.md."""

    retire_after_days: Days | None = None
    """Retire flags whose rollout was rolled back or aborted and did not change for this many days:
    rolloutd serves nothing for them any more, and apps get the default of their own code, which
    should be control. A completed rollout is never retired by age, because it serves treatment: a
    person does that with `rolloutctl retire`. None: no flag is retired by age."""

    stale_after_days: Days | None = 30.0
    """The inventory calls a flag stale that has served 0 % or 100 % for this many days after the
    end of its rollout. Flags of type `ops` and `permission` are meant to stay. None: no flag is."""
    unevaluated_after_days: Days | None = None
    """The inventory reports flags of which no app has reported an evaluation for this many days. It
    begins with the start of the rollout, and not before the flag's evaluations were counted. None:
    no flag is."""
    needs_owner: bool = False
    """Whether the inventory reports active flags whose plan names no owner."""
    name_pattern: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Regular expression (Python's) that whole flag keys must fit, as in
    `(checkout|search)-[a-z0-9-]+`; the inventory reports others. None: any key will do."""
    most_active_per_owner: int | None = Field(default=None, ge=1, le=100_000)
    """Active flags that one owner may have: under way, or completed and serving treatment. The
    inventory reports those of an owner with more. None: any number."""
    most_active: int | None = Field(default=None, ge=1, le=1_000_000)
    """Active flags in all; with more, the inventory reports each. None: any number."""
    weekly_digest: Weekday | None = None
    """On this day at 08:00 UTC one alert `flag_digest` says how many flags have which finding, and
    names the first. Without findings there is none. None: never."""
    at_start: StartRulesSettings = StartRulesSettings()

    @field_validator("name_pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        """Refuse what is no regular expression, or may take exponential time."""
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from error
            if re.search(r"[+*}]\)*[+*{]", pattern):
                raise ValueError("repeats a repetition, which may take very long: write it plainly")
        return pattern

    @property
    def retire_after(self) -> timedelta | None:
        """Return `retire_after_days` as a duration."""
        days = self.retire_after_days
        return None if days is None else timedelta(days=days)
