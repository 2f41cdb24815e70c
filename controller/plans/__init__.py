"""Plans from people: reading them, the rules they must keep to work, and templates.

The form of a plan is `schemas/plan.py`. Every finding says where, what and how to fix it, and all
findings are reported at once.
"""

from controller.plans.advice_rules import advice_beyond_max_bake
from controller.plans.finding import Finding
from controller.plans.reading import MAX_BYTES, lint_text, load_plan
from controller.plans.rules import lint, unrunnable
from controller.plans.templates import template, template_text, templates
from controller.plans.window_rules import core_window

__all__ = [
    "MAX_BYTES",
    "Finding",
    "advice_beyond_max_bake",
    "core_window",
    "lint",
    "lint_text",
    "load_plan",
    "template",
    "template_text",
    "templates",
    "unrunnable",
]
