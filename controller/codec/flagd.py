"""flagd's definition of a flag, as in its HTTP document, its gRPC stream and its files.

Treatment comes first and the sum of the weights never changes, so a higher percentage only adds
buckets at the end: no context loses the treatment, and lowering it removes the latest first.
Weights are integers, because flagd takes a fraction for the default variant. How contexts fall into
buckets is `web/bucketing.py`; which contexts belong to a ring and what it serves is
`core/serving.py`. Here is the same in JsonLogic, which flagd and its providers evaluate.

JsonLogic converts types as JavaScript does, each implementation a little differently. Audiences
convert nothing. So rules that would convert begin with a test of the type, made of what flagd's
evaluators for Go, Python and JavaScript can do: Go's fails on text operators with a boolean,
JavaScript's on arithmetic with a text, and Python takes true for 1.

Source: flagd's flag schema, which `SCHEMA` names; jsonlogic.com.
"""

from __future__ import annotations

from typing import Any

from controller.core.audience import (
    MOMENT_LENGTH,
    Audience,
    Condition,
    comparable_moment,
    full_version,
    version_range,
)
from controller.core.rollout import Rollout
from controller.core.serving import (
    EARLIER_SUFFIX,
    WEIGHT_TOTAL,
    Part,
    Ring,
    Serving,
    serving,
    weight_of,
)
from schemas.terms import Operator

__all__ = [
    "SCHEMA",
    "SPLIT_SALT",
    "WEIGHT_TOTAL",
    "belongs",
    "definition_of",
    "metadata_of",
    "weight_of",
]

#: The schema that a document of definitions names.
SCHEMA = "https://flagd.dev/schema/v0/flags.json"

#: Stands between flag key and targeting key in the text whose hash selects one of the variants that
#: treatment is divided among. It is another hash than the bucket's, so those variants keep their
#: proportions at every percentage.
SPLIT_SALT = "/split/"


def definition_of(rollout: Rollout, served: Serving | None = None) -> dict[str, Any]:
    """Return the definition under the flag's key.

    Evaluators refuse keys that they do not know, so ours are in the metadata. `served` is the
    result of `serving` for the rollout, if the caller has it already.
    """
    served = served or serving(rollout)
    return {
        "state": "ENABLED",
        "variants": dict(served.values),
        "defaultVariant": served.control
        if served.unassigned not in served.values
        else served.unassigned,
        "targeting": _targeting(served),
        "metadata": metadata_of(rollout),
    }


def metadata_of(rollout: Rollout) -> dict[str, str]:
    """Return what clients get beside a variant; flagd allows texts, numbers and booleans."""
    return {"version": str(rollout.revision), "rolloutd.rollout_id": rollout.rollout_id}


# --- rings ---


def _targeting(served: Serving) -> dict[str, Any]:
    """Return the rule with the result of `core.serving.assign`: the first matching ring decides."""
    *narrower, last = served.rings
    branches: list[Any] = []
    for ring in narrower:
        assert ring.audience is not None  # a ring of everybody is the last
        branches += [belongs(ring.audience), _drawn(served, ring)]
    if last.audience is not None:
        branches += [belongs(last.audience), _drawn(served, last), served.unassigned]
    else:
        branches.append(_drawn(served, last))
    return {"if": branches} if len(branches) > 1 else branches[0]


def _drawn(served: Serving, ring: Ring) -> dict[str, Any]:
    """Return the variant of a context of the ring's audience by its buckets."""
    suffix = "" if ring.is_compared else EARLIER_SUFFIX
    treated = Part.TREATMENT if ring.is_compared else Part.EARLIER
    names = {
        Part.CONTROL: served.control,
        Part.UNASSIGNED: served.unassigned,
        treated: served.treatment + suffix,
    }
    drawn = {"fractional": [[names[part], weight] for part, weight in ring.slices]}
    if not served.split:
        return drawn
    # `fractional` by an expression hashes its value in place of flag key and targeting key.
    salted = {"cat": [{"var": "$flagd.flagKey"}, SPLIT_SALT, {"var": "targetingKey"}]}
    divided = {"fractional": [salted, *([name + suffix, weight] for name, weight in served.split)]}
    return {"if": [{"===": [drawn, names[treated]]}, divided, drawn]}


# --- audiences ---

#: True where the evaluator is Python's, for which 1 and true are equal. There a boolean is
#: recognized by how it is written, which Go's evaluator cannot do. JSON has no other way to know.
_TAKES_TRUE_FOR_1 = {"===": [1, True]}


def belongs(audience: Audience) -> dict[str, Any]:
    """Return the rule that is true as `core.audience.matcher` is."""
    return _any(
        [_all([_rule(condition) for condition in conditions]) for conditions in audience.any_of]
    )


def _rule(condition: Condition) -> dict[str, Any]:
    attribute = {"var": condition.attribute}
    first = condition.values[0]
    match condition.operator:
        case Operator.EQ | Operator.IN:
            texts = [value for value in condition.values if isinstance(value, str)]
            listed = [_all([_is_text(attribute), {"in": [attribute, texts]}])] if texts else []
            return _any(
                [
                    *listed,
                    *(
                        _equals(attribute, value)
                        for value in condition.values
                        if not isinstance(value, str)
                    ),
                ]
            )
        case Operator.GTE:
            return _all([*_is_number(attribute), {">=": [attribute, first]}])
        case Operator.LTE:
            return _all([*_is_number(attribute), {"<=": [attribute, first]}])
        case Operator.STARTS_WITH | Operator.ENDS_WITH:
            return _any(
                [{condition.operator.value: [attribute, text]} for text in condition.values]
            )
        case Operator.SEM_VER:
            ranges = [version_range(str(text)) for text in condition.values]
            compared = [
                {"sem_ver": [attribute, comparison, full_version(version)]}
                for comparison, version in ranges
            ]
            return _all([_is_text(attribute), _has_no_lone_suffix(attribute), _any(compared)])
        case Operator.BEFORE:
            return _all(
                [
                    *_looks_like_moment(attribute),
                    {"<": [_second_of(attribute), comparable_moment(str(first))]},
                ]
            )
        case Operator.AFTER:
            return _all(
                [
                    *_looks_like_moment(attribute),
                    {">=": [_second_of(attribute), comparable_moment(str(first))]},
                ]
            )


def _all(rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return that all hold, each evaluated only where those before it hold.

    Earlier evaluators for Go evaluate all operands of `and`.
    """
    *guards, last = rules
    for guard in reversed(guards):
        last = {"if": [guard, last, False]}
    return last


def _any(rules: list[dict[str, Any]]) -> dict[str, Any]:
    return rules[0] if len(rules) == 1 else {"or": rules}


def _equals(attribute: dict[str, str], value: float | bool) -> dict[str, Any]:
    """Return that the attribute is this number or boolean, and true is not taken for 1."""
    same = {"===": [attribute, value]}
    if value not in (0, 1):
        return same
    is_switch = _is_written_as_switch(attribute)
    is_kind = is_switch if isinstance(value, bool) else {"!": [is_switch]}
    return _all([same, {"if": [_TAKES_TRUE_FOR_1, is_kind, True]}])


def _is_written_as_switch(attribute: dict[str, str]) -> dict[str, Any]:
    return {"in": [{"cat": [attribute]}, ["True", "False"]]}


def _is_number(attribute: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rules that only a number meets.

    Arithmetic with other types fails in some evaluators.
    """
    converted = _all(
        [{"!": [_is_written_as_switch(attribute)]}, {"===": [{"+": [attribute]}, attribute]}]
    )
    others = [{"!==": [attribute, other]} for other in (True, False, None)]
    return [{"!": [_is_text(attribute)]}, {"if": [_TAKES_TRUE_FOR_1, converted, {"and": others}]}]


def _is_text(attribute: dict[str, str]) -> dict[str, Any]:
    """Return what only a text meets: flagd's own operators do not convert."""
    return {"starts_with": [attribute, ""]}


def _has_no_lone_suffix(attribute: dict[str, str]) -> dict[str, Any]:
    """Return that a text without a dot has no pre-release or build.

    Some evaluators read `2026-03-01` as version 2026.0.0.
    """
    return {
        "or": [
            {"in": [".", attribute]},
            {"!": [{"or": [{"in": [mark, attribute]} for mark in "-+"]}]},
        ]
    }


def _looks_like_moment(attribute: dict[str, str]) -> list[dict[str, Any]]:
    dashes = [{"===": [{"substr": [attribute, place, 1]}, "-"]} for place in (4, 7)]
    return [_is_text(attribute), *dashes]


def _second_of(attribute: dict[str, str]) -> dict[str, Any]:
    return {"substr": [attribute, 0, MOMENT_LENGTH]}
