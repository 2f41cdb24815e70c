"""How a flag system is told a percentage by HTTP.

A file that words the calls, checked as a whole before the first of them.

Belongs here: the form of a template, what may stand where, and filling it in. Sending is
`http_plane.py`. The form is explained in ops/planes.md; templates for systems that are known to us
are beside this file, in `templates/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.adapters.http_plane.json_paths import JsonPath, NotThere, is_equal
from controller.adapters.http_plane.placeholders import Text
from controller.codec.flagd import WEIGHT_TOTAL
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.errors import ConfigInvalid, FlagPlaneUnavailable

SHIPPED = ("flagsmith", "growthbook", "launchdarkly", "webhook")
MAX_TEMPLATE_BYTES = 100_000

#: What a rollout gives to a template, by name. `rest_` is what is left for control.
DECIDED = frozenset(
    {
        "flag", "treatment", "control", "percent", "rest_percent", "share", "rest_share", "thousandths", "rest_thousandths",
        "enabled", "revision", "rollout_id", "phase", "decided_at",
    }
)  # fmt: skip
SECRET = "secret"  # noqa: S105 - a placeholder's name

_INDEX = "index of "
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
#: Ours to set: who sets them otherwise says something about the connection that is not so.
_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
)


# --- the form
# --------------------------------------------------------------------------------------------------


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ReadForm(_Form):
    url: str
    found: dict[str, str]


class _LineForm(_Form):
    when: dict[str, bool | int | float | str] = {}
    is_: str | float = Field(alias="is")
    of: float = Field(default=100.0, gt=0)


class _RefusalForm(_Form):
    found: str
    why: str


class _WriteForm(_Form):
    method: Literal["POST", "PUT", "PATCH"]
    url: str
    headers: dict[str, str] = {}
    body: Any


class _TemplateForm(_Form):
    about: str = ""
    values: dict[str, str | None] = {}
    headers: dict[str, str] = {}
    sign: bool = False
    read: tuple[_ReadForm, ...] = ()
    percent: tuple[_LineForm, ...] = ()
    refuse: tuple[_RefusalForm, ...] = ()
    write: _WriteForm


# --- checked and ready
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, filled in."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any = None  # a JSON value; None for no body


@dataclass(frozen=True, slots=True)
class _Read:
    url: Text
    found: Mapping[str, tuple[bool, JsonPath]]  # True: the index of the element


@dataclass(frozen=True, slots=True)
class _Line:
    when: Mapping[str, Text | bool | int | float]
    is_: Text | float
    of: float

    @property
    def names(self) -> frozenset[str]:
        texts = [text for text in (*self.when.values(), self.is_) if isinstance(text, Text)]
        return frozenset(self.when).union(*(text.names for text in texts))


@dataclass(frozen=True, slots=True)
class HttpTemplate:
    """A template with the operator's values in it."""

    values: Mapping[str, str]
    headers: Mapping[str, Text]
    reads: tuple[_Read, ...]
    lines: tuple[_Line, ...]
    refusals: Mapping[str, str]  # name found -> why the flag cannot be served
    method: str
    url: Text
    write_headers: Mapping[str, Text]
    body: Any  # JSON with Text in place of text
    is_signed: bool

    @property
    def uses_secret(self) -> bool:
        """Whether requests need the secret."""
        return self.is_signed or any(SECRET in text.names for text in self.headers.values())

    def scope(self, rollout: Rollout, secret: str | None) -> dict[str, Any]:
        """Return what is known before anything was read."""
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

    def read_request(self, place: int, scope: Mapping[str, Any]) -> Request:
        """Return the request of a read step.

        Raises FlagPlaneUnavailable when something was not found that it needs.
        """
        return Request(
            "GET", self._url(self.reads[place].url, scope), self._headers(self.headers, scope)
        )

    def find(self, place: int, answer: Any, scope: dict[str, Any]) -> None:
        """Add to `scope` what a read step's answer holds; what it does not hold stays unknown."""
        for name, (is_index, path) in self.reads[place].found.items():
            if path.names <= scope.keys():
                try:
                    scope[name] = path.index(answer, scope) if is_index else path.get(answer, scope)
                except NotThere:
                    continue

    def percent(self, scope: Mapping[str, Any]) -> float | None:
        """Return the percentage that the first fitting line says; None when none fits."""
        for line in self.lines:
            if line.names <= scope.keys() and all(
                _holds(scope[name], wanted, scope) for name, wanted in line.when.items()
            ):
                said = line.is_.value(scope) if isinstance(line.is_, Text) else line.is_
                try:
                    percent = round(100 * float(said) / line.of, 6)
                except (TypeError, ValueError, OverflowError):
                    return None
                return percent if 0 <= percent <= 100 else None
        return None

    def why_refused(self, scope: Mapping[str, Any]) -> str | None:
        """Return why the flag cannot be served as it is there; None when it can."""
        return next((why for name, why in self.refusals.items() if name in scope), None)

    def write_request(self, scope: Mapping[str, Any]) -> Request:
        """Return the request that sets the percentage.

        Raises FlagPlaneUnavailable when something was not found.
        """
        headers = self._headers({**self.headers, **self.write_headers}, scope)
        try:
            body = _filled(self.body, scope)
        except KeyError as missing:
            raise FlagPlaneUnavailable(
                f"the answer has no {missing.args[0]}, which the change needs"
            ) from None
        except NotThere as trouble:
            raise FlagPlaneUnavailable(
                f"the answer does not have what is to be changed: {trouble}"
            ) from None
        return Request(self.method, self._url(self.url, scope), headers, body)

    def _url(self, url: Text, scope: Mapping[str, Any]) -> str:
        try:
            return url.text(scope, quoted=lambda filled: quote(filled, safe=""))
        except KeyError as missing:
            raise FlagPlaneUnavailable(
                f"the answer has no {missing.args[0]}, which the next address needs"
            ) from None

    def _headers(self, headers: Mapping[str, Text], scope: Mapping[str, Any]) -> dict[str, str]:
        return {name: text.text(scope) for name, text in headers.items()}


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _holds(found: Any, wanted: Text | bool | float, scope: Mapping[str, Any]) -> bool:
    return is_equal(found, wanted.value(scope) if isinstance(wanted, Text) else wanted)


# --- bodies
# --------------------------------------------------------------------------------------------------

_EDIT, _SET = "$edit", "$set"


@dataclass(frozen=True, slots=True)
class _Edit:
    """Something found, with other values at some places."""

    name: str
    changes: tuple[tuple[JsonPath, Any], ...]


def _parsed_body(value: Any) -> Any:
    """Return a body with every text parsed. Raises ValueError."""
    match value:
        case str():
            return Text.parse(value)
        case list():
            return [_parsed_body(each) for each in value]
        case {"$edit": str(found), "$set": dict(changes), **others} if not others:
            source = Text.parse(found)
            if source.first is None or len(source.pieces) != 1:
                raise ValueError(f"{_EDIT}: name what was found, like '{{rules}}'")
            return _Edit(
                source.first,
                tuple((JsonPath.parse(path), _parsed_body(new)) for path, new in changes.items()),
            )
        case dict():
            if _EDIT in value or _SET in value:
                raise ValueError(f"{_EDIT} and {_SET} stand together, and nothing with them")
            return {Text.parse(str(key)): _parsed_body(each) for key, each in value.items()}
        case bool() | int() | float() | None:
            return value
        case _:
            raise ValueError(f"{value!r} is no JSON: quote it")


def _names_in(value: Any) -> frozenset[str]:
    match value:
        case Text():
            return value.names
        case _Edit():
            inner = [path.names | _names_in(new) for path, new in value.changes]
            return frozenset({value.name}).union(*inner)
        case list():
            return frozenset[str]().union(*map(_names_in, value))
        case dict():
            return frozenset[str]().union(
                *(key.names | _names_in(each) for key, each in value.items())
            )
        case _:
            return frozenset()


def _filled(value: Any, scope: Mapping[str, Any]) -> Any:
    """Return a parsed body as JSON. Raises KeyError for a name that was not found, and NotThere."""
    match value:
        case Text():
            return value.value(scope)
        case _Edit():
            edited = scope[value.name]
            for path, new in value.changes:
                edited = path.replaced(edited, _filled(new, scope), scope)
            return edited
        case list():
            return [_filled(each, scope) for each in value]
        case dict():
            return {key.text(scope): _filled(each, scope) for key, each in value.items()}
        case _:
            return value


# --- reading and checking
# --------------------------------------------------------------------------------------------------


def load_template(
    name: str, values: Mapping[str, str], *, allow_plain_http: bool = False
) -> HttpTemplate:
    """Return the template of that name, ours or a file's.

    Raises ConfigInvalid with what is wrong and where.
    """
    if name in SHIPPED:
        text = (
            resources.files("controller.adapters.http_plane")
            .joinpath("templates", f"{name}.yaml")
            .read_text("utf-8")
        )
    else:
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(
                f"template {name}: neither one of {', '.join(SHIPPED)} nor a readable file: {error}"
            ) from error
    try:
        return parse_template(text, values, allow_plain_http=allow_plain_http)
    except ValueError as error:
        raise ConfigInvalid(f"template {name}: {error}") from error


def parse_template(
    text: str, values: Mapping[str, str], *, allow_plain_http: bool = False
) -> HttpTemplate:
    """Return the template that `text` words. Raises ValueError with what is wrong and where."""
    form = _form_of(text)
    given = _given(form.values, values)
    template = HttpTemplate(
        values=given,
        headers=_at("headers", partial(_parsed_headers, form.headers)),
        reads=tuple(
            _at(f"read.{place}", partial(_parsed_read, read))
            for place, read in enumerate(form.read)
        ),
        lines=tuple(
            _at(f"percent.{place}", partial(_parsed_line, line))
            for place, line in enumerate(form.percent)
        ),
        refusals={refusal.found: refusal.why for refusal in form.refuse},
        method=form.write.method,
        url=_at("write.url", partial(Text.parse, form.write.url)),
        write_headers=_at("write.headers", partial(_parsed_headers, form.write.headers)),
        body=_at("write.body", partial(_parsed_body, form.write.body)),
        is_signed=form.sign,
    )
    _check_names(template)
    for place, read in enumerate(template.reads):
        _check_address(f"read.{place}.url", read.url, given, allow_plain_http=allow_plain_http)
    _check_address("write.url", template.url, given, allow_plain_http=allow_plain_http)
    return template


def _form_of(text: str) -> _TemplateForm:
    if len(text) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"longer than {MAX_TEMPLATE_BYTES} characters")
    try:
        return _TemplateForm.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise ValueError(
            "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        ) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _given(asked: Mapping[str, str | None], values: Mapping[str, str]) -> dict[str, str]:
    """Return every value by name.

    Raises ValueError for one that is missing, unknown or unprintable.
    """
    if unknown := values.keys() - asked.keys():
        raise ValueError(
            f"values: it asks for no {', '.join(sorted(unknown))}; it asks for "
            f"{', '.join(asked) or 'none'}"
        )
    given = {name: values.get(name, default) for name, default in asked.items()}
    if missing := [name for name, value in given.items() if not value]:
        raise ValueError(f"values: it needs {', '.join(missing)}")
    for name, value in given.items():
        if name in DECIDED or name == SECRET:
            raise ValueError(f"values.{name}: the name is taken")
        if not (value or "").isascii() or not (value or "").isprintable():
            raise ValueError(f"values.{name}: ASCII on one line only")
    return {name: value for name, value in given.items() if value is not None}


def _at(place: str, parse: Callable[[], Any]) -> Any:
    """Return what `parse` gives; a fault gets its place."""
    try:
        return parse()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _parsed_headers(headers: Mapping[str, str]) -> dict[str, Text]:
    for name, value in headers.items():
        if not _HEADER_NAME.match(name) or name.lower() in _RESERVED_HEADERS:
            raise ValueError(f"{name!r} is no header to set")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"{name}: ASCII on one line only")
    return {name: Text.parse(value) for name, value in headers.items()}


def _parsed_read(read: _ReadForm) -> _Read:
    return _Read(
        Text.parse(read.url),
        {
            name: (at.startswith(_INDEX), JsonPath.parse(at.removeprefix(_INDEX)))
            for name, at in read.found.items()
        },
    )


def _parsed_line(line: _LineForm) -> _Line:
    when = {
        name: Text.parse(wanted) if isinstance(wanted, str) else wanted
        for name, wanted in line.when.items()
    }
    return _Line(when, Text.parse(line.is_) if isinstance(line.is_, str) else line.is_, line.of)


def _check_names(template: HttpTemplate) -> None:
    """Raise ValueError for a placeholder that nothing fills.

    Or that must not stand where it does.
    """
    known = frozenset(template.values) | DECIDED
    for place, texts in (("headers", template.headers), ("write.headers", template.write_headers)):
        for name, text in texts.items():
            _check_known(
                f"{place}.{name}", text.names, known | {SECRET}
            )  # nothing that a server said gets into a header
    for number, read in enumerate(template.reads):
        _check_known(f"read.{number}.url", read.url.names, known)
        for name, (_, path) in read.found.items():
            if name in known or name == SECRET:
                raise ValueError(f"read.{number}.found.{name}: the name is taken")
            _check_known(f"read.{number}.found.{name}", path.names, known)
            known |= {name}
    for number, line in enumerate(template.lines):
        _check_known(f"percent.{number}", line.names, known)
    for name in template.refusals:
        _check_known("refuse", frozenset({name}), known)
    _check_known("write.url", template.url.names, known)
    _check_known("write.body", _names_in(template.body), known)
    if template.lines and not template.reads:
        raise ValueError("percent: nothing is read that it could be taken from")
    if template.reads and not template.lines:
        raise ValueError("percent: say where in what is read the served percentage stands")


def _check_known(place: str, names: frozenset[str], known: frozenset[str]) -> None:
    for name in sorted(names - known):
        hint = (
            "the secret stands in headers only"
            if name == SECRET
            else f"there are {', '.join(sorted(known))}"
        )
        raise ValueError(f"{place}: nothing fills {{{name}}}; {hint}")


def _check_address(
    place: str, url: Text, values: Mapping[str, str], *, allow_plain_http: bool
) -> None:
    """Raise ValueError unless the address is that of one server, whatever is filled in later, and nobody listens on the way."""
    begun = ""
    for piece in url.pieces:
        if not isinstance(piece, str) and piece.name not in values:
            break
        begun += (
            piece
            if isinstance(piece, str)
            else quote(values[piece.name], safe="")
            if begun
            else values[piece.name]
        )
    parts = urlsplit(begun)
    is_open_ended = not url.names <= values.keys()
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.password
        or "%" in parts.netloc
    ):
        raise ValueError(
            f"{place}: begin with an address like https://flags.example.org, without user "
            f"and password"
        )
    if parts.port == 0 or (
        is_open_ended and not parts.path.startswith("/")
    ):  # a port out of range raises by itself
        raise ValueError(
            f"{place}: give a port that exists, and a slash after it before anything that "
            f"is filled in"
        )
    if (
        parts.scheme == "http"
        and not allow_plain_http
        and parts.hostname not in ("localhost", "127.0.0.1", "::1")
    ):
        raise ValueError(
            f"{place}: http:// lets others read along; use https://, or set allow_plain_http"
        )
