"""Finds who changed a flag after our last write, by Unleash's audit trail. Pure: no calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.adapters.unleash.api import AuditEntry, Strategy
from controller.adapters.unleash.strategies import OFF, Content, Mark

_STRATEGY_CHANGES: Final = ("feature-strategy-add", "feature-strategy-update")
_SWITCHES: Final = {"feature-environment-enabled": True, "feature-environment-disabled": False}
_CREATION: Final = "feature-created"
_REMOVALS: Final = (
    "feature-strategy-remove",
    "feature-archived",
    "feature-deleted",
    "feature-project-change",
)
#: The editor's name where the trail has none.
SOMEBODY: Final = "somebody"


@dataclass(frozen=True, slots=True)
class Trail:
    """What the audit trail says about a deviation."""

    # who made the newest change after our last write; None: nobody did, so we did not finish
    editor: str | None
    has_been_ours: bool  # we have written to this flag


def follow(changes: Sequence[AuditEntry], *, environment: str) -> Trail:
    """Go back from the newest change to the last that is ours; `changes` are newest first."""
    editor: str | None = None
    for change in changes:
        if change.environment not in (None, environment):
            continue
        if change.type == _CREATION:
            break  # the changes before it are of another flag with this name
        if change.type in _STRATEGY_CHANGES:
            if (mark := _mark_if_ours(change)) is not None:
                editor = editor or _switched_against(mark, changes, change.id, environment)
                return Trail(editor, has_been_ours=True)
        elif change.type not in _REMOVALS:
            continue
        editor = editor or change.created_by or SOMEBODY
    return Trail(None, has_been_ours=False)


def _mark_if_ours(change: AuditEntry) -> Mark | None:
    """Return the mark if the change holds a strategy exactly as we write it, else None."""
    strategy = _strategy(change.data)
    mark = None if strategy is None else Mark.read(strategy.title)
    if strategy is None or mark is None or Content.of(strategy).digest != mark.digest:
        return None
    return mark


def _switched_against(
    mark: Mark, changes: Sequence[AuditEntry], after: int, environment: str
) -> str | None:
    """Return who switched the environment last after our write, if against what the mark says."""
    for change in changes:
        if change.id <= after:
            return None
        if change.environment == environment and change.type in _SWITCHES:
            is_as_written = _SWITCHES[change.type] == (mark.share != OFF)
            return None if is_as_written else change.created_by or SOMEBODY
    return None


def _strategy(data: Any) -> Strategy | None:
    """Return the strategy in an audit entry, None for what cannot be read as one."""
    if not isinstance(data, Mapping):
        return None
    try:
        strategy = Strategy(
            id=str(data["id"]),
            name=str(data["name"]),
            title=None if data.get("title") is None else str(data["title"]),
            disabled=bool(data.get("disabled")),
            parameters=dict(data.get("parameters") or {}),
            constraints=[dict(each) for each in data.get("constraints") or ()],
            variants=[dict(each) for each in data.get("variants") or ()],
            segments=[int(each) for each in data.get("segments") or ()],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return strategy
