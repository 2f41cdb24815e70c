"""The form of a template: a YAML file with the calls to make, checked before the first call.

Belongs here: the form of a template, and what may stand where. The form is explained in
`ops/planes.md`. Templates for systems that are known to us are beside this file, in `templates/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.adapters.http_plane.bodies import names_in, parse_body
from controller.adapters.http_plane.json_paths import JsonPath
from controller.adapters.http_plane.placeholders import Text
from controller.adapters.http_plane.template import (
    DECIDED,
    SECRET,
    HttpTemplate,
    PercentLine,
    ReadStep,
)
from controller.errors import ConfigInvalid

SHIPPED: Final = ("flagsmith", "growthbook", "launchdarkly", "webhook")
MAX_TEMPLATE_CHARS: Final = 100_000

#: Begins the place of a list's element whose index is taken, not the element itself.
_INDEX: Final = "index of "
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
#: Headers that only we set: another value would say something untrue about the connection.
_RESERVED_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
)


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ReadForm(_Form):
    url: str
    extract: dict[str, str]


class _LineForm(_Form):
    when: dict[str, bool | int | float | str] = {}
    is_: str | float = Field(alias="is")
    of: float = Field(default=100.0, gt=0)


class _RefusalForm(_Form):
    if_present: str
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


def load_template(
    name: str, values: Mapping[str, str], *, allow_plain_http: bool = False
) -> HttpTemplate:
    """Return the template of that name: one of ours, or a file.

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
    """Return the template in `text`. Raises ValueError with what is wrong and where."""
    form = _form_of(text)
    complete = _complete_values(form.values, values)
    template = HttpTemplate(
        values=complete,
        headers=_at("headers", partial(_parse_headers, form.headers)),
        reads=tuple(
            _at(f"read.{place}", partial(_parse_read, read)) for place, read in enumerate(form.read)
        ),
        lines=tuple(
            _at(f"percent.{place}", partial(_parse_line, line))
            for place, line in enumerate(form.percent)
        ),
        refusals={refusal.if_present: refusal.why for refusal in form.refuse},
        method=form.write.method,
        url=_at("write.url", partial(Text.parse, form.write.url)),
        write_headers=_at("write.headers", partial(_parse_headers, form.write.headers)),
        body=_at("write.body", partial(parse_body, form.write.body)),
        is_signed=form.sign,
    )
    _check_names(template)
    for place, read in enumerate(template.reads):
        _check_address(f"read.{place}.url", read.url, complete, allow_plain_http=allow_plain_http)
    _check_address("write.url", template.url, complete, allow_plain_http=allow_plain_http)
    return template


def _form_of(text: str) -> _TemplateForm:
    if len(text) > MAX_TEMPLATE_CHARS:
        raise ValueError(f"longer than {MAX_TEMPLATE_CHARS} characters")
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


def _complete_values(
    defaults: Mapping[str, str | None], values: Mapping[str, str]
) -> dict[str, str]:
    """Return every value of a template by name; a default of None means that it must be given.

    Raises ValueError for a value that is missing, unknown or unprintable.
    """
    if unknown := values.keys() - defaults.keys():
        raise ValueError(
            f"values: it asks for no {', '.join(sorted(unknown))}; it asks for "
            f"{', '.join(defaults) or 'none'}"
        )
    complete = {name: values.get(name, default) for name, default in defaults.items()}
    if missing := [name for name, value in complete.items() if not value]:
        raise ValueError(f"values: it needs {', '.join(missing)}")
    for name, value in complete.items():
        if name in DECIDED or name == SECRET:
            raise ValueError(f"values.{name}: the name is taken")
        if not (value or "").isascii() or not (value or "").isprintable():
            raise ValueError(f"values.{name}: ASCII on one line only")
    return {name: value for name, value in complete.items() if value is not None}


def _at(place: str, parse: Callable[[], Any]) -> Any:
    """Return the result of `parse`; a ValueError gets its place."""
    try:
        return parse()
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _parse_headers(headers: Mapping[str, str]) -> dict[str, Text]:
    for name, value in headers.items():
        if not _HEADER_NAME.match(name) or name.lower() in _RESERVED_HEADERS:
            raise ValueError(f"{name!r} is no header to set")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"{name}: ASCII on one line only")
    return {name: Text.parse(value) for name, value in headers.items()}


def _parse_read(read: _ReadForm) -> ReadStep:
    return ReadStep(
        Text.parse(read.url),
        {
            name: (at.startswith(_INDEX), JsonPath.parse(at.removeprefix(_INDEX)))
            for name, at in read.extract.items()
        },
    )


def _parse_line(line: _LineForm) -> PercentLine:
    when = {
        name: Text.parse(value) if isinstance(value, str) else value
        for name, value in line.when.items()
    }
    share = Text.parse(line.is_) if isinstance(line.is_, str) else line.is_
    return PercentLine(when, share, line.of)


def _check_names(template: HttpTemplate) -> None:
    """Raise ValueError for a placeholder that nothing fills, or that may not stand there."""
    names = frozenset(template.values) | DECIDED
    for place, texts in (("headers", template.headers), ("write.headers", template.write_headers)):
        for name, text in texts.items():
            # Nothing that a server said gets into a header.
            _check_known(f"{place}.{name}", text.names, names | {SECRET})
    for number, read in enumerate(template.reads):
        _check_known(f"read.{number}.url", read.url.names, names)
        for name, (_, path) in read.extract.items():
            if name in names or name == SECRET:
                raise ValueError(f"read.{number}.extract.{name}: the name is taken")
            _check_known(f"read.{number}.extract.{name}", path.names, names)
            names |= {name}
    for number, line in enumerate(template.lines):
        _check_known(f"percent.{number}", line.names, names)
    for name in template.refusals:
        _check_known("refuse", frozenset({name}), names)
    _check_known("write.url", template.url.names, names)
    _check_known("write.body", names_in(template.body), names)
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
    """Raise ValueError unless the address is that of one server, safe from eavesdroppers.

    That must hold whatever is filled in later.
    """
    parts = urlsplit(_fixed_beginning(url, values))
    is_one_server = (
        parts.scheme in ("http", "https")
        and parts.hostname
        and not parts.username
        and not parts.password
        and "%" not in parts.netloc
    )
    if not is_one_server:
        raise ValueError(
            f"{place}: begin with an address like https://flags.example.org, without user "
            f"and password"
        )
    is_open_ended = not url.names <= values.keys()
    # `parts.port` itself raises ValueError for a port out of range.
    if parts.port == 0 or (is_open_ended and not parts.path.startswith("/")):
        raise ValueError(
            f"{place}: give a port that exists, and a slash after it before anything that "
            f"is filled in"
        )
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme == "http" and not allow_plain_http and not is_local:
        raise ValueError(
            f"{place}: http:// lets others read along; use https://, or set allow_plain_http"
        )


def _fixed_beginning(url: Text, values: Mapping[str, str]) -> str:
    """Return the address up to the first placeholder that is filled in per request."""
    beginning = ""
    for piece in url.pieces:
        if isinstance(piece, str):
            beginning += piece
        elif piece.name in values:
            value = values[piece.name]
            beginning += quote(value, safe="") if beginning else value
        else:
            break
    return beginning
