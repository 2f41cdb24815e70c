"""Jinja2 for words that an operator wrote: it can loop, decide and cut, and always ends.

Jinja2's own sandbox keeps a template from Python. It does not keep it from an endless loop or from
a text of gigabytes, and either would stop every message of this process. So a template is checked
part by part before it is compiled, and pays for what it does while it is filled in.

Belongs here: what a template may do, and how much of it. Does not belong here: which values it is
given (`templates.py`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

from jinja2 import StrictUndefined, Template, Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: Characters of any text on the way, and of the result: news itself has at most 2,000 in a field.
LONGEST: Final = 10_000
#: Steps of one filling: a few milliseconds. A template of a screen with a loop needs some hundreds.
MOST_WORK: Final = 20_000
#: Characters that are as much work as one step.
_PER_STEP: Final = 100
_LARGEST_RANGE: Final = 1_000
_MOST_BITS: Final = 256  # of a number
_MOST_DIGITS: Final = 10  # that a number is rounded to

#: What a template consists of. Left out is what calls itself, reads files, or collects text that
#: nobody counts: macros, blocks, imports, dictionaries.
_PARTS: Final = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.Assign,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.CondExpr,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Compare,
    nodes.Operand,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
    nodes.Concat,
    nodes.Keyword,
    nodes.List,
    nodes.Tuple,
)
#: Methods of text. `replace` and `format` are filters, which know how long their result will be.
_METHODS: Final = frozenset(
    {
        *("upper", "lower", "title", "capitalize", "strip", "lstrip", "rstrip", "count", "find"),
        *("startswith", "endswith", "removeprefix", "removesuffix", "isdigit", "split"),
        "splitlines",
    }
)
#: A width or precision that makes a long text of a short one.
_WIDE: Final = re.compile(r"\d{4}|\*")
_Scalar = str | int | float | None

_work_left: ContextVar[float] = ContextVar("template_work_left", default=0.0)


def _spend(work: float) -> None:
    left = _work_left.get() - work
    _work_left.set(left)
    if left < 0:
        raise SecurityError("this is too much work for a message: fewer loops, or shorter ones")


def _bounded(value: Any) -> Any:
    """Return a value that is not too long, and charge for its length."""
    size = len(value) if isinstance(value, str | list | tuple | range) else 0
    if size > LONGEST:
        raise SecurityError(f"a text on the way has more than {LONGEST:,} characters")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise SecurityError("a number of this size is not possible here")
    _spend(size / _PER_STEP if isinstance(value, str) else size)
    return value


def _scalar(value: Any) -> _Scalar:
    """Return a text or a number; lists in lists could grow without anybody counting."""
    if isinstance(value, Undefined):
        str(value)  # raises, with the name
    if not isinstance(value, _Scalar):
        raise SecurityError("only text and numbers are shown; of a list use `join`, or a loop")
    return value


# --- filters ---


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # it also keeps that Jinja2 hands in the environment
    def call(*values: Any, **named: Any) -> Any:
        _spend(1)
        for one in (*values, *named.values()):
            _bounded(one)
        return _bounded(function(*values, **named))

    return call


def _join(values: Iterable[Any], d: str = "") -> str:
    texts = [str(_scalar(one)) for one in values]
    if sum(map(len, texts)) + len(str(d)) * len(texts) > LONGEST:
        raise SecurityError(f"a text on the way has more than {LONGEST:,} characters")
    return str(d).join(texts)


def _joined(*values: Any) -> str:
    return _join(values)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    found = str(_scalar(text))
    times = found.count(str(old)) if count < 0 else count
    if len(found) + times * len(str(new)) > LONGEST:
        raise SecurityError(f"a text on the way has more than {LONGEST:,} characters")
    return found.replace(str(old), str(new), count)


def _format(pattern: Any, *values: Any) -> str:
    if _WIDE.search(str(_scalar(pattern))):
        raise SecurityError("a width or precision like this is not possible here")
    return str(pattern) % tuple(_scalar(one) for one in values)


def _round(value: Any, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > _MOST_DIGITS:
        raise SecurityError(f"a number is rounded to {_MOST_DIGITS} digits at most")
    if method == "common":
        return round(float(value), precision)
    to = {"ceil": math.ceil, "floor": math.floor}[method]
    return float(to(value * 10**precision) / 10**precision)


def _string(value: Any) -> str:
    return str(_scalar(value))


def _counted(values: Any, parts: int) -> Iterator[Any]:
    """Yield the values of a loop whose body has so many parts."""
    for one in values:
        _spend(parts)
        yield one


def _small_range(*numbers: int) -> range:
    made = range(*numbers)
    if len(made) > _LARGEST_RANGE:
        raise SecurityError(f"a range of more than {_LARGEST_RANGE:,}")
    return made


_FROM_JINJA: Final = (
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "last", "length"),
    *("list", "lower", "max", "min", "reverse", "sort", "title", "trim", "truncate", "unique"),
    *("upper", "urlencode", "wordcount"),
)
_OWN: Final[Mapping[str, Callable[..., Any]]] = {
    "format": _format,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "string": _string,
}
FILTERS: Final = tuple(sorted([*_FROM_JINJA, *_OWN]))


# --- the sandbox ---


class _Checked(NodeTransformer):
    """Refuses what a template must not have, and makes loops and `~` pay."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if not isinstance(node, _PARTS) or (isinstance(node, nodes.For) and node.recursive):
            what = type(node).__name__.lower()
            raise TemplateAssertionError(f"`{what}` is not possible here", node.lineno)
        if isinstance(node, nodes.Filter) and node.name not in FILTERS:
            known = ", ".join(FILTERS)
            why = f"there is no filter `{node.name}` here; there are {known}"
            raise TemplateAssertionError(why, node.lineno)
        size = _size(node.body) if isinstance(node, nodes.For) else 0
        made: nodes.Node = super().generic_visit(node, *args, **kwargs)
        if isinstance(made, nodes.For):
            made.iter = _filtered("counted", made.iter, nodes.Const(1 + size))
        if isinstance(made, nodes.Concat):
            return _filtered("joined", *made.nodes)
        if isinstance(made, nodes.List | nodes.Tuple) and getattr(made, "ctx", "load") == "load":
            made.items = [_filtered("scalar", one) for one in made.items]
        return made


def _size(body: Iterable[nodes.Node]) -> int:
    return sum(1 + sum(1 for _ in one.find_all(nodes.Node)) for one in body)


def _filtered(name: str, first: nodes.Node, *others: nodes.Node) -> nodes.Filter:
    """Return a call of one of our own filters, which no template can name."""
    return nodes.Filter(
        first, f"our {name}", list(others), [], None, None, lineno=first.lineno or 1
    )


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with our prices."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, optimized=False, finalize=self._shown
        )
        known = self.filters
        self.filters = {name: _charged(known[name]) for name in _FROM_JINJA}
        self.filters |= {name: _charged(one) for name, one in _OWN.items()}
        self.filters |= {
            "our counted": _counted,
            "our joined": _charged(_joined),
            "our scalar": _scalar,
        }
        self.globals.clear()
        self.globals["range"] = _small_range

    @staticmethod
    def _shown(value: Any) -> Any:
        return _bounded(_scalar(value))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute: of text, what makes no more of it."""
        if isinstance(obj, str):
            return attr in _METHODS
        if isinstance(obj, int | float | list | tuple | range):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` to `is_safe_attribute`: a width in it is as long as it says."""

    def call(self, context: Any, obj: Any, /, *values: Any, **named: Any) -> Any:
        """Call what the sandbox allows, and charge for it."""
        _spend(1)
        return _bounded(super().call(context, obj, *values, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Calculate with numbers, put texts together, and fill in `%`. Raises SecurityError."""
        _spend(1)
        if operator == "%" and isinstance(left, str):
            return _bounded(_format(left, *(right if isinstance(right, tuple) else (right,))))
        are_numbers = all(isinstance(one, int | float) for one in (left, right))
        are_texts = all(isinstance(one, str) for one in (left, right))
        if not are_numbers and not (operator == "+" and are_texts):
            for one in (left, right):
                _scalar(one)
            raise SecurityError(f"{operator} of this is not possible here")
        return _bounded(super().call_binop(context, operator, left, right))


_environment = _Sandbox()


@functools.lru_cache(maxsize=500)
def _compiled(source: str) -> Template:
    return _environment.from_string(_Checked().visit(_environment.parse(source)))


def filled(source: str, values: Mapping[str, Any]) -> str:
    """Return a template filled in. Raises ValueError with what is wrong, and its line."""
    token = _work_left.set(MOST_WORK)
    try:
        return "".join(_pieces(_compiled(source), values))
    except Exception as error:  # a stranger's program may fail in any way
        why = getattr(error, "message", None) or str(error) or type(error).__name__
        raise ValueError(f"line {_line_of(error)}: {why}") from error
    finally:
        _work_left.reset(token)


def _pieces(template: Template, values: Mapping[str, Any]) -> Iterator[str]:
    size = 0
    for piece in template.generate(values):
        size += len(piece)
        if size > LONGEST:
            raise SecurityError(f"it makes more than {LONGEST:,} characters")
        yield piece


def _line_of(error: Exception) -> int:
    """Return the line of a template that failed, 1 where it is not known."""
    line = getattr(error, "lineno", None) or 1
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return int(line)
