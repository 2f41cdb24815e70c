"""Every record that we read: what is none is refused in the one way that its readers expect."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

import schemas

WRONG = [
    "x",
    1.5,
    None,
    True,
    [],
    {},
    10**400,
    1e308,
    float("nan"),
    b"\xff",
    "\ud800",
    [None],
    {"a": None},
    [[]],
    {1: 2},
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
]


def models() -> Iterator[type[BaseModel]]:
    """Yield every model of the package."""
    for found in pkgutil.iter_modules(schemas.__path__):
        module = importlib.import_module(f"schemas.{found.name}")
        for value in vars(module).values():
            is_model = isinstance(value, type) and issubclass(value, BaseModel)
            if is_model and value.__module__ == module.__name__:
                yield value


@pytest.mark.parametrize("model", list(models()), ids=lambda one: one.__qualname__)
def test_a_wrong_value_is_a_fault_of_form(model: type[BaseModel]) -> None:
    """A TypeError, which pydantic lets through, stopped whoever read a foreign record."""
    for name, field in model.model_fields.items():
        for value in WRONG:
            try:
                model.model_validate({field.alias or name: value})
            except ValidationError:
                continue
