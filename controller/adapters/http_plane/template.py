"""A template in use: the requests that read and set a flag's percentage in another system.

Belongs here: filling in requests, and what their answers mean. How a template is written and
checked is `template_file.py`, how requests are sent `plane.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from controller.adapters.http_plane.bodies import fill
from controller.adapters.http_plane.json_paths import JsonPath, NotThere, is_equal
from controller.adapters.http_plane.placeholders import Text
from controller.codec.flagd import WEIGHT_TOTAL
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.errors import FlagPlaneUnavailable

#: What a rollout gives to a template, by name. `rest_` is the share that is left for control.
DECIDED: Final = frozenset(
    {
        *("flag", "treatment", "control", "enabled", "revision", "rollout_id", "phase"),
        *("percent", "rest_percent", "share", "rest_share", "thousandths", "rest_thousandths"),
        "decided_at",
    }
)
SECRET: Final = "secret"  # noqa: S105 - a placeholder's name


@dataclass(frozen=True, slots=True)
class FilledRequest:
    """One HTTP request, filled in."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any = None  # a JSON value; None for no body


@dataclass(frozen=True, slots=True)
class ReadStep:
    """One GET, and the values that are extracted from its answer."""

    url: Text
    extract: Mapping[str, tuple[bool, JsonPath]]  # True: the index of the element


@dataclass(frozen=True, slots=True)
class PercentLine:
    """One way to compute the served percentage: `is_` out of `of`, when all of `when` holds."""

    when: Mapping[str, Text | bool | int | float]
    is_: Text | float
    of: float

    @property
    def names(self) -> frozenset[str]:
        """The names that must be filled in for this line to apply."""
        texts = [text for text in (*self.when.values(), self.is_) if isinstance(text, Text)]
        return frozenset(self.when).union(*(text.names for text in texts))


@dataclass(frozen=True, slots=True)
class HttpTemplate:
    """A template with the operator's values in it."""

    values: Mapping[str, str]
    headers: Mapping[str, Text]
    reads: tuple[ReadStep, ...]
    lines: tuple[PercentLine, ...]
    refusals: Mapping[str, str]  # extracted name -> why the flag cannot be served
    method: str
    url: Text
    write_headers: Mapping[str, Text]
    body: Any  # JSON with Text in place of text
    is_signed: bool

    @property
    def uses_secret(self) -> bool:
        """True when requests need the secret."""
        return self.is_signed or any(SECRET in text.names for text in self.headers.values())

    def scope(self, rollout: Rollout, secret: str | None) -> dict[str, Any]:
        """Return the values by name before anything was read."""
        percent = percent_to_serve(rollout)
        rest = round(100 - percent, 2)
        return {
            **self.values,
            SECRET: secret or "",
            "flag": rollout.flag_key,
            "treatment": rollout.plan.treatment,
            "control": rollout.plan.control,
            "percent": _plain(percent),
            "rest_percent": _plain(rest),
            "share": _plain(round(percent / 100, 6)),
            "rest_share": _plain(round(rest / 100, 6)),
            "thousandths": round(percent * 1000),
            "rest_thousandths": 10 * WEIGHT_TOTAL - round(percent * 1000),
            "enabled": percent > 0,
            "revision": rollout.revision,
            "rollout_id": rollout.rollout_id,
            "phase": str(rollout.phase.name),
            "decided_at": rollout.updated_at.isoformat().replace("+00:00", "Z"),
        }

    def read_request(self, place: int, scope: Mapping[str, Any]) -> FilledRequest:
        """Return the request of a read step.

        Raises FlagPlaneUnavailable when a value that it needs was not in an earlier answer.
        """
        return FilledRequest(
            "GET", self._url(self.reads[place].url, scope), self._headers(self.headers, scope)
        )

    def extract(self, place: int, answer: Any, scope: dict[str, Any]) -> None:
        """Add the values in a read step's answer to `scope`; missing ones are left out."""
        for name, (is_index, path) in self.reads[place].extract.items():
            if path.names <= scope.keys():
                try:
                    scope[name] = path.index(answer, scope) if is_index else path.get(answer, scope)
                except NotThere:
                    continue

    def percent(self, scope: Mapping[str, Any]) -> float | None:
        """Return the percentage by the first line that applies; None when none does."""
        for line in self.lines:
            if line.names <= scope.keys() and all(
                _holds(scope[name], expected, scope) for name, expected in line.when.items()
            ):
                share = line.is_.value(scope) if isinstance(line.is_, Text) else line.is_
                try:
                    percent = round(100 * float(share) / line.of, 6)
                except (TypeError, ValueError, OverflowError):
                    return None
                return percent if 0 <= percent <= 100 else None
        return None

    def why_refused(self, scope: Mapping[str, Any]) -> str | None:
        """Return why the flag cannot be served in its present state; None when it can."""
        return next((why for name, why in self.refusals.items() if name in scope), None)

    def write_request(self, scope: Mapping[str, Any]) -> FilledRequest:
        """Return the request that sets the percentage.

        Raises FlagPlaneUnavailable when a value that it needs was not in an answer.
        """
        headers = self._headers({**self.headers, **self.write_headers}, scope)
        try:
            body = fill(self.body, scope)
        except KeyError as missing:
            raise FlagPlaneUnavailable(
                f"the answer has no {missing.args[0]}, which the change needs"
            ) from None
        except NotThere as trouble:
            raise FlagPlaneUnavailable(
                f"the answer does not have what is to be changed: {trouble}"
            ) from None
        return FilledRequest(self.method, self._url(self.url, scope), headers, body)

    def _url(self, url: Text, scope: Mapping[str, Any]) -> str:
        try:
            return url.text(scope, quoted=lambda value: quote(value, safe=""))
        except KeyError as missing:
            raise FlagPlaneUnavailable(
                f"the answer has no {missing.args[0]}, which the next address needs"
            ) from None

    def _headers(self, headers: Mapping[str, Text], scope: Mapping[str, Any]) -> dict[str, str]:
        return {name: text.text(scope) for name, text in headers.items()}


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _holds(value: Any, expected: Text | bool | float, scope: Mapping[str, Any]) -> bool:
    return is_equal(value, expected.value(scope) if isinstance(expected, Text) else expected)
