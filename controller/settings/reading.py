"""Settings from a YAML file and from the environment.

A variable names a setting by its path, with `__` between the steps
(`ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS`), and beats the file. Lists and maps are written as JSON in a
variable. `null` stands for None where a setting may be None and is not a secret. A secret can be
given as `<name>_file`, the path of a file that holds it. Only this module reads the environment.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_origin

import yaml
from pydantic import ValidationError

from controller.errors import ConfigInvalid
from controller.settings.model import Settings
from controller.settings.section import FILE_SUFFIX, Section, is_secret, is_section, named_section
from controller.text import fault_words, file_trouble
from controller.yaml_places import Path as KeyPath
from controller.yaml_places import YamlRefused, read_yaml

PREFIX: Final = "ROLLOUTD_"
CONFIG_VARIABLE: Final = "ROLLOUTD_CONFIG"

#: Variables with our prefix that are not settings: the path of the settings file, and those that
#: only tests and tools read.
NOT_SETTINGS: Final = frozenset({CONFIG_VARIABLE})
NOT_SETTINGS_PREFIXES: Final = ("ROLLOUTD_TEST_", "ROLLOUTD_ALLOW_")

#: A variable with this value sets an optional setting to None.
_NONE: Final = "null"


def load_settings(
    path: Path | None, environ: Mapping[str, str], options: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings of a file, overlaid by the `ROLLOUTD_` variables of `environ`.

    The file is `path`, or the one that ROLLOUTD_CONFIG names. Without either, variables overlay the
    defaults. `options` has, by variable, the option of the command line that has set it. Raises
    ConfigInvalid with every fault, one per line, each with `file:line:column` or the name of the
    variable or of the option, and how to fix it.
    """
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    source = _Source(path, options or {})
    if path is not None:
        source.read_file(path)
    source.overlay(environ)
    source.choose_directory(environ)
    try:
        settings = Settings.model_validate(source.values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        source.faults.extend(source.describe(fault) for fault in faults)
    else:
        if not source.faults:
            return settings
    raise ConfigInvalid("\n".join(source.faults))


@dataclass(slots=True)
class _Source:
    """Values from the file and the variables, where each was given, and what is wrong with them."""

    path: Path | None
    options: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)  # `file:line:column`, or a variable
    faults: list[str] = field(default_factory=list)

    def read_file(self, path: Path) -> None:
        """Take the file's mapping; a file that holds none is a fault."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            how = f"name another file with --config or {CONFIG_VARIABLE}"
            self.faults.append(f"{path}: cannot be read: {file_trouble(error)}; {how}")
            return
        try:
            document = read_yaml(text, yaml.SafeLoader)
        except YamlRefused as refused:
            place = f"{path}" if refused.line is None else f"{path}:{refused.line}:{refused.column}"
            what = "file" if refused.line is None else "line"
            self.faults.append(f"{place}: not YAML: {refused}; fix the {what}")
            return
        for repeated in document.repeated_keys:
            place = f"{path}:{repeated.line}:{repeated.column}"
            self.faults.append(f"{place}: {_dotted(repeated.path)} is given twice: keep one")
        if document.is_empty:
            return
        if not isinstance(document.values, dict):
            self.faults.append(f"{path}:1:1: expected a mapping such as `environment: production`")
            return
        self.values = document.values
        self.places = {
            at: f"{path}:{line}:{column}" for at, (line, column) in document.places.items() if at
        }

    def overlay(self, environ: Mapping[str, str]) -> None:
        """Lay `ROLLOUTD_` variables over the values; one that names no setting is a fault."""
        for variable in sorted(environ):
            if _is_setting(variable):
                self._lay(variable, environ[variable])

    def choose_directory(self, environ: Mapping[str, str]) -> None:
        """Set the directory of the last known state where neither file nor variable does."""
        section, directory = self._section_at(("last_known",)), state_directory(environ)
        if section is not None and directory is not None:
            section.setdefault("directory", directory)

    def _lay(self, variable: str, text: str) -> None:
        steps = tuple(variable.removeprefix(PREFIX).lower().split("__"))
        annotation = _annotation_at(steps)
        if annotation is None:
            self.faults.append(f"{variable}: no such setting{_hint_at_variable(steps)}")
            return
        value: Any = text
        if text == _NONE and _may_be_none(annotation):
            value = None
        elif _is_collection(annotation):
            try:
                value = json.loads(text)
            except ValueError:
                self.faults.append(f'{variable}: write a list as JSON, e.g. ["a", "b"]')
                return
        section = self._section_at(steps[:-1])
        if section is None:
            return  # the file gives this section another type: validation reports it
        other_form = _other_form(steps[-1])
        if not self.places.get((*steps[:-1], other_form), "").startswith(PREFIX):
            section.pop(other_form, None)  # a variable beats the file, whichever form each gives
        section[steps[-1]] = value
        self.places[steps] = variable

    def _section_at(self, steps: tuple[str, ...]) -> dict[str, Any] | None:
        """Return the mapping at a path, created where there is none; None where it is no mapping.

        A section with nothing under its key counts as absent.
        """
        section = self.values
        for step in steps:
            inner = section.get(step)
            if inner is None:
                inner = section[step] = {}
            if not isinstance(inner, dict):
                return None
            section = inner
        return section

    def describe(self, fault: Mapping[str, Any]) -> str:
        """Return one line: where, which setting, what is wrong, how to fix it."""
        at: KeyPath = tuple(fault["loc"])
        message = fault_words(fault["type"], str(fault["msg"]))
        nearest = [at[:n] for n in range(len(at), 0, -1)]
        # A section's own check begins with the setting's name: `api_key_file cannot be read`.
        nearest.insert(0, (*at, message.partition(" ")[0]))
        place = next((self.places[one] for one in nearest if one in self.places), None)
        option = self.options.get(place or "")
        where = place or ("settings" if self.path is None else f"{self.path}")
        if fault["type"] == "extra_forbidden":
            message = f"no such setting{_hint_at_key(at)}"
        if option is not None:
            return f"{option}: {message}"
        name = _dotted(at)
        return f"{where}: {name}: {message}" if name else f"{where}: {message}"


def _is_setting(variable: str) -> bool:
    return (
        variable.startswith(PREFIX)
        and variable not in NOT_SETTINGS
        and not variable.startswith(NOT_SETTINGS_PREFIXES)
    )


def state_directory(environ: Mapping[str, str]) -> Path | None:
    """Return where a program of this user keeps its state, None where nothing says it."""
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd may list several
    if given:
        return Path(given)
    base, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    parent = Path(base) if base else Path(home, ".local", "state") if home else None
    return parent / "rolloutd" if parent is not None and parent.is_absolute() else None


def _other_form(name: str) -> str:
    """Return `password_file` for `password`, and the reverse."""
    is_file = name.endswith(FILE_SUFFIX)
    return name.removesuffix(FILE_SUFFIX) if is_file else f"{name}{FILE_SUFFIX}"


def _annotation_at(steps: tuple[str, ...]) -> Any:
    """Return the type of the setting at a path, None where there is none or a whole section."""
    annotation: Any = Settings
    for step in steps:
        named = named_section(annotation)
        if named is not None:
            annotation = named  # the step is a name that the operator chose
        elif is_section(annotation) and step in annotation.model_fields:
            annotation = annotation.model_fields[step].annotation
        else:
            return None
    return None if is_section(annotation) or named_section(annotation) is not None else annotation


def _is_collection(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, list, dict, set, frozenset)


def _may_be_none(annotation: Any) -> bool:
    """Return whether `null` in a variable means None; a secret may be the text `null`."""
    return NoneType in get_args(annotation) and not is_secret(annotation)


def _variables(model: type[Section], at: tuple[str, ...] = ()) -> Iterable[str]:
    """Yield every setting as a variable's name."""
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        if is_section(annotation):
            yield from _variables(annotation, (*at, name))
        elif named_section(annotation) is None:
            yield PREFIX + "__".join((*at, name)).upper()


def _hint_at_variable(steps: tuple[str, ...]) -> str:
    """Return the nearest variable as the end of a message."""
    variable = PREFIX + "__".join(steps).upper()
    near = difflib.get_close_matches(variable, list(_variables(Settings)), n=1)
    return f"; did you mean {near[0]}?" if near else "; `rolloutd config show` lists them"


def _hint_at_key(at: KeyPath) -> str:
    """Return the nearest key of the same section as the end of a message."""
    model: Any = Settings
    for step in at[:-1]:
        named = named_section(model)
        model = named if named is not None else model.model_fields[str(step)].annotation
    near = difflib.get_close_matches(str(at[-1]), list(model.model_fields), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(model.model_fields)}"


def _dotted(at: KeyPath) -> str:
    return ".".join(str(step) for step in at)
