"""The native fold is the one built beside us, or an installed one of our own version."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from controller.counting.native_place import load_native, native_place

#: Stands for a checkout without `make native`.
NOT_BUILT = "controller.counting._not_built"


def install(version: str | None, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a directory of installed packages that has a `rolloutd-native`."""
    (into / "rolloutd_native").mkdir()
    (into / "rolloutd_native" / "__init__.py").touch()
    if version is not None:
        about = into / f"rolloutd_native-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.4\nName: rolloutd-native\nVersion: {version}\n"
        (about / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(into)


def test_without_one_the_reference_counts() -> None:
    """Nothing is refused, because nothing is there."""
    place = native_place(NOT_BUILT)
    assert (place.module, place.refused) == (None, None)


def test_one_of_our_version_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and not imported."""
    install(metadata.version("rolloutd"), tmp_path, monkeypatch)
    assert native_place(NOT_BUILT).module == "rolloutd_native._native"


@pytest.mark.parametrize("version", ["0.0.9", "9.9.9", None])
def test_one_of_another_version_is_refused(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it counts and stores is that of its version; the operator hears what to do."""
    install(version, tmp_path, monkeypatch)
    place = native_place(NOT_BUILT)
    assert place.module is None
    assert place.refused is not None
    assert version is None or version in place.refused
    assert "install" in place.refused


def test_one_that_was_built_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout runs its own sources."""
    install("9.9.9", tmp_path, monkeypatch)
    place = native_place("controller.counting.native_place")  # any module that is there
    assert (place.module, place.refused) == ("controller.counting.native_place", None)


def test_one_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written or foreign file: the reference counts, and the operator hears what to do."""
    (tmp_path / "half_written.abi3.so").write_bytes(b"garbage")
    monkeypatch.syspath_prepend(tmp_path)
    module, refused = load_native(native_place("half_written"))
    assert module is None
    assert refused is not None
    assert "make reference native" in refused
    assert load_native(native_place(NOT_BUILT)) == (None, None)
