"""The dashboards are what their source says, and ask only for metrics that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml

from controller.telemetry import Metrics

ROOT: Final = Path(__file__).parents[2]
GRAFANA: Final = ROOT / "ops" / "grafana"
FILES: Final = sorted((GRAFANA / "dashboards").glob("*.json"))
#: Of prometheus_client and of Prometheus itself.
OTHERS: Final = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def generator() -> ModuleType:
    """Return the module that writes the dashboards."""
    spec = importlib.util.spec_from_file_location("generate", GRAFANA / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def panels_of(path: Path) -> list[dict[str, Any]]:
    """Return every panel of a dashboard, without rows."""
    document = json.loads(path.read_text())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


# Files in the classic form are what provisioning reads in every version of Grafana.
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_the_files_are_what_the_source_says() -> None:
    """`make dashboards` writes them."""
    wanted = generator().dashboards()
    assert {path.name: path.read_text() for path in FILES} == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    """It has a fixed uid and no id, and its panels do not overlap."""
    document = json.loads(path.read_text())
    assert document["uid"].startswith("rolloutd-")
    assert document.get("id") is None
    assert document["templating"]["list"][0]["type"] == "datasource"
    taken: set[tuple[int, int]] = set()
    for panel in panels_of(path):
        assert panel["title"]
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_metric_that_is_asked_for_exists(path: Path) -> None:
    """A metric that is renamed leaves no empty panel behind."""
    known = set(OTHERS)
    for family in Metrics(version="1").registry.collect():
        known |= {family.name, f"{family.name}_total", f"{family.name}_bucket"}
    for panel in panels_of(path):
        for target in panel["targets"]:
            names = set(re.findall(r"\b(?:rolloutd|process)_\w+", target["expr"]))
            assert names, target["expr"]
            assert names <= known, target["expr"]


def test_grafana_is_given_the_dashboards_and_the_source() -> None:
    """The paths are those of docker-compose.yml."""
    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/rolloutd.yml").read_text())
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/rolloutd.yml").read_text())
    (provider,), (source,) = providers["providers"], sources["datasources"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./ops/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./ops/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    assert source["url"] == "http://prometheus:9090"
