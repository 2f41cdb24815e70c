"""Options that belong together: one parameter of a command's function, several on the command line.

Typer reads the options of a command from the parameters of its function. A parameter whose type is
an `OptionGroup` stands for several options: the fields of that class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_type_hints


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """The base of groups. Each field is an option, and has a default."""


def ungrouped(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as Typer can read it: with the options of each group one by one."""
    signature = inspect.signature(function, eval_str=True)
    groups = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, OptionGroup)
    }
    if not groups:
        return function

    @functools.wraps(function)
    def command(**typed: Any) -> None:
        for name, group in groups.items():
            typed[name] = group(**{one.name: typed.pop(one.name) for one in fields(group)})
        function(**typed)

    single = [one for name, one in signature.parameters.items() if name not in groups]
    options = [option for group in groups.values() for option in _options(group)]
    command.__signature__ = signature.replace(parameters=single + options)  # type: ignore[attr-defined]
    return command


def _options(group: type[OptionGroup]) -> Iterator[inspect.Parameter]:
    """Yield each option; what a group adds comes before what it has from another."""
    types, own = get_type_hints(group, include_extras=True), inspect.get_annotations(group)
    for one in sorted(fields(group), key=lambda one: one.name not in own):
        yield inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=one.default,
            annotation=types[one.name],
        )
