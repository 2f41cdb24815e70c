"""Where the local Kafka keeps its jars on machines whose home directory cannot be used."""

from __future__ import annotations

from pathlib import Path

import local_kafka
import pytest


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path below a file, where nobody can make a directory; the checkout's cache is empty."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(local_kafka, "OWN_CACHE", tmp_path / "own")
    monkeypatch.setattr(local_kafka, "why_not", lambda: None)
    return file / "below"


def test_without_a_usable_home_the_jars_are_in_the_checkout(
    blocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that can be made is used; one that cannot is not asked for."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_kafka.cache_directory().is_relative_to(tmp_path / "home" / ".cache")
    monkeypatch.setenv("HOME", str(blocked))
    assert local_kafka.cache_directory().is_relative_to(tmp_path / "own" / "rolloutd")


def test_jars_in_a_home_that_is_read_only_are_used(
    blocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched again for want of a right to write."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kept = local_kafka.cache_directory()
    kept.mkdir(parents=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert local_kafka.resolve() == kept


def test_a_cache_that_cannot_be_written_is_named_with_the_fix(
    blocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the home directory nor the checkout can be written."""
    monkeypatch.setenv("HOME", str(blocked))
    monkeypatch.setattr(local_kafka, "OWN_CACHE", blocked)
    with pytest.raises(local_kafka.LocalKafkaError) as raised:
        local_kafka.resolve()
    assert str(blocked) in str(raised.value)
    assert "Set XDG_CACHE_HOME" in str(raised.value)
