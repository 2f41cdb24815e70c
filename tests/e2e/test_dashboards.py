"""Every query of the dashboards and rules, on a real Prometheus that scrapes a running daemon."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final

import pytest

from schemas.terms import CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.prometheus import ROOT, Prometheus, scraping

pytestmark = pytest.mark.e2e

FLAG: Final = "new-checkout"
#: What a rollout that is well does not have.
NEED_TROUBLE: Final = (
    "sum by (kind, severity) (increase(rolloutd_alerts_total[1h]))",
    "rolloutd_rollout_hold",
    "rolloutd_quarantined_total",
    "rolloutd_unknown_flag_events_by_name",
)


def queries() -> dict[str, str]:
    """Return every expression of every dashboard, with its variables filled in."""
    found = {}
    for path in sorted((ROOT / "ops/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression: str = target["expr"]
                filled = expression.replace("$flag", FLAG).replace("$metric", "error_rate")
                found[f"{path.stem}: {panel['title']}: {target.get('legendFormat', '')}"] = filled
    return found


async def unanswered(prometheus: Prometheus, seconds: float) -> dict[str, str]:
    """Return the queries that have no data within these seconds."""
    deadline = time.monotonic() + seconds
    left = {
        name: expression
        for name, expression in queries().items()
        if not any(part in expression for part in NEED_TROUBLE)
    }
    while left and time.monotonic() < deadline:
        for name, expression in list(left.items()):
            series: list[dict[str, Any]] = await asyncio.to_thread(prometheus.query, expression)
            if series:
                del left[name]
        await asyncio.sleep(1)
    return left


@pytest.mark.rare
async def test_every_panel_has_data_while_a_rollout_runs(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A panel without data would say nothing on the day it is needed."""
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        stage = quick_plan(FLAG).stages[0].model_dump(mode="json", exclude_none=True)
        plan = quick_plan(FLAG, stages=[{**stage, "bake": "9m"}])
        with scraping([daemon.ops_url.removeprefix("http://")], tmp_path) as prometheus:
            async with asyncio.timeout(60):  # a counter that rose before the first scrape did not
                while not await asyncio.to_thread(prometheus.query, "rolloutd_build_info"):
                    await asyncio.sleep(0.2)
            await client.command(CommandVerb.START, FLAG, plan=plan)
            async with Traffic(client, daemon, FLAG):
                left = await unanswered(prometheus, 90)
            assert left == {}
            for expression in queries().values():  # raises for one that is wrong
                await asyncio.to_thread(prometheus.query, expression)
            rules = await asyncio.to_thread(prometheus.rules)
            assert [rule["lastError"] for rule in rules if rule["health"] == "err"] == []
            recorded = await asyncio.to_thread(prometheus.query, "flag:rolloutd_percent:max")
            assert [one["metric"]["flag_key"] for one in recorded] == [FLAG]
