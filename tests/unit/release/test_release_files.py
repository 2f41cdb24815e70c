"""What a release says of itself: versions that agree, parts with licenses, bills of materials."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from bill_of_materials import Released, bill
from license_texts import license_file
from locked_parts import Part, normal, packages
from make_release import LOCK, agreed_version, check_replaceable, unreleased_lines
from wheels import NATIVE

ROOT = Path(__file__).parents[3]
VERSION_FILES = ("pyproject.toml", "CHANGELOG.md", f"{NATIVE}/Cargo.toml")
OURS = Released("rolloutd", "0.1.0", "0" * 64, 1_764_000_000)
SITE_PACKAGES = next(Path(path) for path in sys.path if path.endswith("site-packages"))
CRATE = Part("cargo", "crc32c", "0.6.9", ("a" * 64,), frozenset({"rolloutd"}), license="MIT")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the files that name the version."""
    for name in VERSION_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_every_place_has_the_version(checkout: Path) -> None:
    """As this checkout has it, and as it is installed."""
    assert agreed_version(checkout) == metadata.version("rolloutd")


@pytest.mark.parametrize("name", VERSION_FILES)
def test_a_place_that_was_forgotten_is_named(checkout: Path, name: str) -> None:
    """Nothing is built of a version that two places name differently."""
    version = agreed_version(checkout)
    text = (checkout / name).read_text(encoding="utf-8")
    (checkout / name).write_text(text.replace(version, "9.9.9"), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(Path(name).name)):
        agreed_version(checkout)


def test_the_extra_must_name_the_version(checkout: Path) -> None:
    """Another version of the native fold is not used, so the extra would install it in vain."""
    path = checkout / "pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub("rolloutd-native==[0-9.]+", "rolloutd-native==0.0.1", text))
    with pytest.raises(SystemExit, match="extra `native`"):
        agreed_version(checkout)


def test_changes_after_the_version_are_counted(checkout: Path) -> None:
    """A build of them under the old version would be a second release of that name."""
    path = checkout / "CHANGELOG.md"
    path.write_text("## Unreleased\n\n- One\n  line.\n- Two.\n\n## 0.1.0 (2026-11-24)\n\n- Old.\n")
    assert unreleased_lines(checkout) == 2
    path.write_text("## Unreleased\n\n## 0.1.0 (2026-11-24)\n\n- Old.\n")
    assert unreleased_lines(checkout) == 0


def test_the_lock_file_is_read_whole() -> None:
    """Every package with its hashes, and what it is needed by."""
    found = packages(ROOT / LOCK, SITE_PACKAGES)
    text = (ROOT / LOCK).read_text(encoding="utf-8")
    assert len(found) == len(re.findall("^[a-z].*==", text, re.MULTILINE))
    assert sum(len(part.sha256) for part in found) == text.count("--hash=sha256:")
    assert all(part.needed_by for part in found)
    [aiokafka] = [part for part in found if part.name == "aiokafka"]
    assert aiokafka.license == "Apache-2.0"
    assert aiokafka.needed_by == {"rolloutd"}
    [colorama] = [part for part in found if part.name == "colorama"]
    assert colorama.marker == "sys_platform == 'win32'"


def test_a_line_that_is_not_understood_is_not_left_out(tmp_path: Path) -> None:
    """A package that the bill does not name would be the one that is asked for."""
    lock = tmp_path / "some.lock"
    lock.write_text("thing @ file:///thing.whl \\\n    --hash=sha256:00\n")
    with pytest.raises(ValueError, match="is not a pinned package"):
        packages(lock, tmp_path)


def test_every_installed_package_has_its_license_in_the_file() -> None:
    """The text of the license too, where the package brings it."""
    parts = packages(ROOT / LOCK, SITE_PACKAGES)
    text = license_file("0.1.0", parts, [CRATE])
    for part in parts:
        installed = any(normal(one.name) == part.name for one in metadata.distributions())
        assert f"  {part.name} {part.version}: " in text
        assert not installed or part.license is not None, part.name
        assert not installed or part.texts, part.name
    assert "crc32c 0.6.9: MIT" in text
    assert "Redistribution and use in source and binary forms" in text


def is_spdx(said: str) -> bool:
    """Stand for the tool of the release."""
    return said == "MIT"


def test_a_bill_is_the_same_for_the_same_parts_only() -> None:
    """Its serial number and time come from what was released."""
    parts = [CRATE, replace(CRATE, kind="pypi", name="httpx", marker="python_version < '4'")]
    first = bill(OURS, parts, is_spdx)
    assert bill(OURS, list(parts), is_spdx) == first
    other = bill(OURS, [*parts, replace(CRATE, name="heck", license="as it is")], is_spdx)
    said, also = json.loads(first), json.loads(other)
    assert also["components"][0]["licenses"] == [{"expression": "MIT"}]
    assert also["components"][2]["licenses"] == [{"license": {"name": "as it is"}}]
    assert said["serialNumber"] != also["serialNumber"]
    assert said["metadata"]["timestamp"] == "2025-11-24T16:00:00Z"
    [ours, *_] = said["dependencies"]
    assert ours["dependsOn"] == ["pkg:cargo/crc32c@0.6.9", "pkg:pypi/httpx@0.6.9"]


def test_only_an_earlier_release_is_replaced(tmp_path: Path) -> None:
    """A directory with anything else is refused: it would be removed with all that is in it."""
    check_replaceable(tmp_path / "new")
    for name in ("rolloutd-0.1.0-py3-none-any.whl", "SHA256SUMS", "AUDIT.txt"):
        (tmp_path / name).touch()
    check_replaceable(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SystemExit, match=r"thesis\.txt"):
        check_replaceable(tmp_path)
