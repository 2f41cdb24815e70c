"""The plan templates of the package: files to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources

from controller.errors import ConfigInvalid
from controller.plans.finding import nearest_word
from controller.plans.reading import load_plan
from schemas.metric_names import CONVERSION_PREFIX, names_of
from schemas.plan import PlanDocument

_PLACEHOLDER = "flag: my-flag"
#: The line of a template's business metric begins so: which one it is, only the user knows.
_CONVERSION = '# - {metric: "conversion:NAME"'


def _template_names() -> Iterable[str]:
    files = resources.files("schemas") / "templates"
    return sorted(
        file.name.removesuffix(".yaml") for file in files.iterdir() if file.name.endswith(".yaml")
    )


def templates() -> dict[str, str]:
    """Return each template's name and what it does, in one line."""
    return {name: template(name, "my-flag").description for name in _template_names()}


def template_text(name: str, flag: str, conversion: str | None = None) -> str:
    """Return a template as YAML with its comments, for `flag`.

    With the name of a conversion, the template's business metric is that one. Raises ConfigInvalid
    for an unknown name, and for a conversion where the template has no business metric.
    """
    names = list(_template_names())
    if name not in names:
        near = nearest_word(name, names)
        hint = "" if near is None else f"did you mean {near}? "
        raise ConfigInvalid(f"there is no template {name!r}; {hint}there are: {', '.join(names)}")
    text = (resources.files("schemas") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")
    if conversion is not None:
        if _CONVERSION not in text:
            raise ConfigInvalid(
                f"template {name} has no business metric; add `conversion:{conversion} > "
                f"control - 5%` to its guardrails"
            )
        metric = CONVERSION_PREFIX + conversion
        try:
            names_of(metric)
        except ValueError as fault:
            raise ConfigInvalid(f"{conversion[:40]!r} cannot name a conversion: {fault}") from None
        text = text.replace(_CONVERSION, f"- {{metric: {json.dumps(metric)}", 1)
    return text.replace(_PLACEHOLDER, f"flag: {json.dumps(flag)}", 1)


def template(name: str, flag: str, conversion: str | None = None) -> PlanDocument:
    """Return a template as the plan of `flag`, see `template_text`.

    Raises ConfigInvalid for an unknown name, an unusable flag key or conversion.
    """
    return load_plan(template_text(name, flag, conversion), f"template {name}")
