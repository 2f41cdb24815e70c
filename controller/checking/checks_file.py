"""The checks file: which objectives are checked, how often, and when one is missed.

Belongs here: what the file may say, and each fault with its place. Does not belong here: addresses
and tokens of monitoring systems (`settings/checks.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path as FilePath
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from controller.settings.checked_file import FilePart, parse, read_text
from controller.yaml_places import Path
from schemas.fields import Duration
from schemas.fields import at_most as up_to

WINDOW: Final = "{window}"
#: Long window, short window and burn rate. Source: Google SRE workbook, "Alerting on SLOs",
#: multiwindow multi-burn-rate alerts, table 5-8.
BURN_RATES: Final = (
    ("1h", "5m", 14.4),
    ("6h", "30m", 6.0),
    ("3d", "6h", 1.0),
)

CheckName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Query = Annotated[str, Field(min_length=1, max_length=10_000)]
_Words = Annotated[str, Field(max_length=200)]


class BurnRate(FilePart):
    """How fast an error budget is spent. It is missed when both windows of a pair burn too fast."""

    errors: Query
    """Prometheus query of the share of bad requests, 0 to 1, with `{window}` for its range."""
    objective: Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)]
    """Share of good requests that is promised, in percent: 99.9."""


class UptimeKuma(FilePart):
    """A monitor of Uptime Kuma."""

    monitor: Annotated[str, Field(min_length=1, max_length=200)]
    """Its name."""
    what: Literal["up", "response_seconds"] = "up"
    """`up`: 1 or 0."""


class BetterStack(FilePart):
    """A monitor of Better Stack."""

    monitor: Annotated[str, Field(pattern=r"^\d{1,20}$")]
    """Its id, as in the address of its page."""
    what: Literal["availability", "response_seconds", "open_incidents"] = "availability"
    """`availability`: of today, in percent. `response_seconds`: the newest of all regions."""


class Blackbox(FilePart):
    """A probe of a blackbox exporter."""

    target: Annotated[str, Field(min_length=1, max_length=2_000)]
    """What is probed."""
    module: Annotated[str, Field(min_length=1, max_length=100)] = "http_2xx"
    what: Literal["success", "duration_seconds"] = "success"


class Check(FilePart):
    """One objective."""

    name: CheckName
    prometheus: Query | None = None
    """A query that gives one number."""
    burn_rate: BurnRate | None = None
    uptime_kuma: UptimeKuma | None = None
    better_stack: BetterStack | None = None
    blackbox: Blackbox | None = None
    at_least: Annotated[float, Field(allow_inf_nan=False)] | None = None
    at_most: Annotated[float, Field(allow_inf_nan=False)] | None = None
    every: Annotated[Duration, up_to("1d")] = timedelta(seconds=30)
    """Time between two looks."""
    misses: Annotated[int, Field(strict=True, ge=1, le=100)] = 2
    """It fires when so many of the last looks missed the objective."""
    of: Annotated[int, Field(strict=True, ge=1, le=100)] = 3
    """How many looks count. It is over when all of them have met it."""
    again: Annotated[Duration, up_to("1d")] = timedelta(minutes=5)
    """While it is missed, it fires again after so long: a rule that takes one flag takes the next
    one then."""
    service: _Words = ""
    severity: _Words = ""

    @field_validator("every", "again")
    @classmethod
    def _check_time(cls, value: timedelta) -> timedelta:
        if value < timedelta(seconds=1):
            raise ValueError("is less than a second")
        return value

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        measures = ("prometheus", "burn_rate", "uptime_kuma", "better_stack", "blackbox")
        given = [name for name in measures if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(measures)}")
        has_limit = self.at_least is not None or self.at_most is not None
        if self.burn_rate is not None and has_limit:
            raise ValueError("burn_rate has its limits: leave out at_least and at_most")
        if self.burn_rate is None and not has_limit:
            raise ValueError("needs at_least, at_most or both")
        if self.misses > self.of:
            raise ValueError(f"misses is more than the {self.of} looks of `of`")
        return self

    def is_met(self, value: float) -> bool:
        """Return whether a number meets the objective."""
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    @property
    def objective(self) -> str:
        """The objective in words."""
        if self.burn_rate is not None:
            return f"{self.burn_rate.objective:g} % of requests are good"
        parts = []
        if self.at_least is not None:
            parts.append(f"at least {self.at_least:g}")
        if self.at_most is not None:
            parts.append(f"at most {self.at_most:g}")
        return " and ".join(parts)


class ChecksFile(FilePart):
    """Everything that the file says."""

    version: Literal[1] = 1
    checks: Annotated[tuple[Check, ...], Field(max_length=200)] = ()


def read_checks(path: FilePath) -> ChecksFile:
    """Return the file. Raises ConfigInvalid with every fault, one per line, each with its place."""
    return parse_checks(read_text(path, "checks.file", "make fewer checks"), str(path))


def parse_checks(text: str, name: str) -> ChecksFile:
    """Return what a file's text says; `name` stands before each fault. Raises ConfigInvalid."""
    return parse(text, name, ChecksFile, _broken_rules)


def _broken_rules(file: ChecksFile) -> Iterator[tuple[Path, str]]:
    """Yield what the form allows and nobody can mean, each with its place."""
    names: set[str] = set()
    for index, check in enumerate(file.checks):
        if check.name in names:
            yield ("checks", index, "name"), f"there are two called {check.name}: rename one"
        names.add(check.name)
        if check.burn_rate is not None and WINDOW not in check.burn_rate.errors:
            yield (
                ("checks", index, "burn_rate", "errors"),
                "has no {window}: each burn rate is asked for ranges of several lengths",
            )
        for place, query in _queries(check):
            if "vector(0)" in query.replace(" ", ""):
                yield (
                    ("checks", index, *place),
                    "`or vector(0)` makes no data look like zero: leave it out",
                )


def _queries(check: Check) -> Iterator[tuple[tuple[str, ...], str]]:
    if check.prometheus is not None:
        yield ("prometheus",), check.prometheus
    if check.burn_rate is not None:
        yield ("burn_rate", "errors"), check.burn_rate.errors
