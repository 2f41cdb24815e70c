"""Imports what only a replica with a rollout needs, once the first one is known."""

from __future__ import annotations

from controller.core.rollout import Rollout


def import_for_rollouts(_rollout: Rollout) -> None:
    """Import what judges, with numpy, and the templates of the page.

    They are 16 MB, and take 0.2 s. These pass at the start of a replica, or when the first rollout
    of all begins, whoever runs it. So no replica waits for them when it takes a flag over, lowers
    one, or shows a page; without a rollout there is nothing to delay.
    """
    import jinja2  # noqa: F401

    import controller.deciding.flag.flag_worker  # noqa: F401
