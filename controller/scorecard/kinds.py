"""The kinds of gate cases: the names alone, so that `--help` need not read the cases."""

from __future__ import annotations

from enum import StrEnum


class CaseKind(StrEnum):
    """What a case tries."""

    CLEAR_PASS = "clear_pass"  # noqa: S105  # a kind
    HIDDEN_HARM = "hidden_harm"  # harm that the guardrails miss by design of the case
    MIXED = "mixed"
    LOW_DATA = "low_data"
    DRIFT = "drift"
    MISLEADING_TEXT = "misleading_text"
    INJECTION = "injection"
    LANGUAGE = "language"
    ABSURD = "absurd"
