"""The kinds of metric: each name has one, and nothing else in the program names a kind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.core.metrics import KINDS, VIRTUAL_METRICS, kind_of, kind_to_show
from controller.core.metrics.conversion import Conversion
from controller.core.metrics.error_rate import ErrorRate
from controller.core.metrics.latency import LatencyDistribution, LatencyQuantile
from schemas.metric_names import METRIC_KINDS, METRIC_PATTERN, METRICS

ROOT = Path(__file__).parents[4]
ROOM = ("controller/core/metrics/", "schemas/metric_names.py")

#: File -> names of kinds that may stand in it, each for the reason given.
NAMED_ELSEWHERE = {
    # The demo's scenarios name the guardrail that its plan breaches.
    "controller/demo/scenarios.py": {"error_rate", "latency", "latency_p99"},
    # A counter of this name; mypyc needs the slots written out.
    "controller/counting/folding/arm_counters.py": {"latency"},
    # That counter, which starts empty.
    "controller/core/evidence.py": {"latency"},
    # A key of an input line of `rolloutctl verdict`.
    "controller/cli/verdict_lines.py": {"latency"},
    # Fields of a form, for what `rolloutctl simulate` has options for.
    "controller/web/page/plans.py": {"conversion", "error_rate", "latency"},
}
#: Files that may import a kind's own module: for options and figures that exist for one kind.
KIND_IMPORTED_ELSEWHERE = {
    "controller/planning/typed_traffic.py",
    "controller/planning/virtual_traffic.py",
}

_NAME = re.compile(METRIC_PATTERN)
_OF_ONE_KIND = re.compile(r"controller\.core\.metrics\.(?!kind\b|virtual\b)\w+")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Yield path and syntax tree of each source file outside the room of the kinds."""
    for package in ("controller", "schemas"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(ROOM):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def kind_literals(tree: ast.Module) -> set[str]:
    """Return the texts in a file that are a metric's name, or a part that tells its kind."""
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    prefixes = ("conversion:", "latency_p")
    return {text for text in texts if _NAME.match(text) or text in {"conversion", *prefixes}}


def test_no_other_file_names_a_kind() -> None:
    """A literal such as "latency" or "conversion:" stands in the room of the kinds alone."""
    literals = {name: found for name, tree in sources() if (found := kind_literals(tree))}
    assert literals == NAMED_ELSEWHERE


def test_no_other_file_imports_a_kind() -> None:
    """The rest of the program asks `MetricKind`, and does not know which kinds there are."""
    importers = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and _OF_ONE_KIND.match(node.module or "")
    }
    assert importers == KIND_IMPORTED_ELSEWHERE


@pytest.mark.parametrize("metric", [*METRICS, "conversion:bought"])
def test_each_name_has_one_kind(metric: str) -> None:
    """A kind keeps the name, and has the unit and direction of its names."""
    kind = kind_of(metric)
    assert kind.metric == metric
    assert kind is kind_of(metric)
    assert kind.names in METRIC_KINDS
    assert kind.virtual in VIRTUAL_METRICS


def test_kinds_and_names_are_the_same() -> None:
    """Each row of names has what makes its kind."""
    assert set(KINDS) == set(METRIC_KINDS)


def test_names_tell_the_kind() -> None:
    """The distribution is no quantile, and a conversion has its own name."""
    assert isinstance(kind_of("error_rate"), ErrorRate)
    assert isinstance(kind_of("latency"), LatencyDistribution)
    quantile = kind_of("latency_p999")
    assert isinstance(quantile, LatencyQuantile)
    assert quantile.quantile == 0.999
    conversion = kind_of("conversion:a:b")
    assert isinstance(conversion, Conversion)
    assert conversion.conversion == "a:b"


def test_an_unknown_name_is_refused_but_can_be_shown() -> None:
    """A record of a newer version may name a metric that this one does not know."""
    with pytest.raises(ValueError, match="did you mean error_rate"):
        kind_of("error_rat")
    assert kind_to_show("apdex").is_share
    assert not kind_to_show("apdex").is_better_when_higher


def test_weights_of_alpha_add_up_to_one() -> None:
    """Each kind has its part of a role's alpha."""
    names = ("error_rate", "latency", "conversion:bought")
    assert sum(kind_of(name).alpha_weight for name in names) == pytest.approx(1)
