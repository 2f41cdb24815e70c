"""`rolloutd config check`: every fault of every file at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import ConfigInvalid
from controller.running.part_checks import check_parts
from controller.settings import load_settings


def test_every_file_with_a_fault_is_named(tmp_path: Path) -> None:
    """People correct all files, then check again: they were told of the first alone."""
    names = ("signals", "checks", "notifications")
    files = {name: tmp_path / f"{name}.yaml" for name in names}
    for path in files.values():
        path.write_text("nothing_of_ours: 1\n")
    config = tmp_path / "rolloutd.yaml"
    config.write_text(
        f"hooks: {{rules_file: {files['signals']}}}\n"
        f"checks: {{file: {files['checks']}}}\n"
        f"notifications: {{rules_file: {files['notifications']}}}\n"
    )
    with pytest.raises(ConfigInvalid) as refused:
        check_parts(load_settings(config, {}))
    assert [name for name in names if f"{files[name]}:1:1" in str(refused.value)] == [*names]


def test_a_certificate_for_kafka_that_is_missing_is_a_fault(tmp_path: Path) -> None:
    """Else the configuration is called valid, and the daemon ends on it."""
    missing = tmp_path / "ca.pem"
    config = tmp_path / "rolloutd.yaml"
    config.write_text(f"kafka: {{security: {{protocol: SSL, ca_file: {missing}}}}}\n")
    with pytest.raises(ConfigInvalid, match=f"kafka.security.ca_file: {missing} cannot be read"):
        check_parts(load_settings(config, {}))
