"""Reads a YAML file of an operator into a model, and names every fault with its place.

Belongs here: the way from a file to a model, and to faults one per line. Does not belong here: what
one file may say (`access_file.py`, `signal_rules.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from controller.errors import ConfigInvalid
from controller.text import fault_words, file_trouble
from controller.yaml_places import Path as KeyPath
from controller.yaml_places import YamlRefused, read_yaml
from schemas.fields import models_in

ModelT = TypeVar("ModelT", bound=BaseModel)
#: A file of a thousand entries is far smaller.
MAX_BYTES: Final = 1_000_000


class FilePart(BaseModel):
    """A part of such a file: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def read_text(path: Path, setting: str, instead: str) -> str:
    """Return a file's text; `instead` says what keeps such a file small.

    Raises ConfigInvalid, with the setting that names the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = file_trouble(error)
        raise ConfigInvalid(f"{path}: cannot be read: {why}; fix {setting}") from error
    if len(content) > MAX_BYTES:
        raise ConfigInvalid(f"{path}: is larger than {MAX_BYTES} bytes: {instead}")
    return text


def _keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the keys that the part of a file has to which the last step of a path belongs."""
    for step in path[:-1]:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        if field is not None:
            model = next(models_in(field.annotation), model)
    return list(model.model_fields)


def parse(
    text: str,
    name: str,
    model: type[ModelT],
    broken_rules: Callable[[ModelT], Iterable[tuple[KeyPath, str]]],
) -> ModelT:
    """Return what a file's text says; `name` stands before each fault.

    `broken_rules` yields what the form allows and nobody can mean. Raises ConfigInvalid with every
    fault, one per line.
    """
    try:
        document = read_yaml(text, yaml.SafeLoader)
    except YamlRefused as refused:
        place = name if refused.line is None else f"{name}:{refused.line}:{refused.column}"
        raise ConfigInvalid(f"{place}: not YAML: {refused}; fix the line") from refused
    faults = [
        f"{name}:{one.line}:{one.column}: {'.'.join(map(str, one.path))} is given twice: keep one"
        for one in document.repeated_keys
    ]

    def at(path: tuple[Any, ...]) -> str:
        nearest = (path[:n] for n in range(len(path), 0, -1))
        found = next((document.places[one] for one in nearest if one in document.places), None)
        return name if found is None else f"{name}:{found[0]}:{found[1]}"

    try:
        made = model.model_validate({} if document.is_empty else document.values)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            path = tuple(part for part in fault["loc"] if part != "[key]")
            message = fault_words(fault["type"], str(fault["msg"]))
            if fault["type"] == "extra_forbidden":
                message = f"is not known here; write one of {', '.join(_keys_at(model, path))}"
            faults.append(f"{at(path)}: {'.'.join(map(str, path)) or 'the file'}: {message}")
        raise ConfigInvalid("\n".join(faults)) from None
    faults += [f"{at(path)}: {why}" for path, why in broken_rules(made)]
    if faults:
        raise ConfigInvalid("\n".join(faults))
    return made
