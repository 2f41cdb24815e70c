"""Every outside plane says itself what it can serve."""

from pathlib import Path

from controller.planes import _configured, planes_without_audiences
from controller.settings import Settings


def test_planes_of_shares_are_named_and_only_those_that_are_configured() -> None:
    """Redis keys, HTTP templates and GO Feature Flag's files serve a share and nothing else."""
    assert planes_without_audiences(Settings().planes) == []
    planes = {
        "redis": {"url": "redis://localhost"},
        "unleash": {"url": "https://unleash.example.org", "token": "t"},
        "files": {
            "sidecar": {"path": Path("/flags/flags.json"), "format": "flagd"},
            "relay": {"path": Path("/flags/flags.yaml"), "format": "go-feature-flag"},
        },
        "http": {"hook": {"template": "webhook", "values": {"url": "https://hook.example.org"}}},
    }
    settings = Settings.model_validate({"planes": planes})
    assert planes_without_audiences(settings.planes) == ["file:relay", "redis", "http:hook"]


def test_every_plane_lets_go_of_a_retired_flag() -> None:
    """One that has neither method would go on serving it, and nobody would be told."""
    for kind in _configured(Settings().planes):
        assert hasattr(kind.plane, "retire") or hasattr(kind.plane, "drop"), kind.name
