"""The first line of the log says what a replica is and what it connects to, and no secret."""

from __future__ import annotations

import json

from controller.running.start_line import start_line
from controller.settings import Settings


def test_the_line_names_every_address() -> None:
    """Kafka, Redis, model, planes and ports are there, also where they are off."""
    given = Settings.model_validate(
        {
            "environment": "staging",
            "kafka": {"bootstrap_servers": "kafka-1:9092"},
            "redis": {"url": "redis://cache:6379/1", "password": "canary"},
            "http": {"host": "0.0.0.0", "ops_port": None},
        }
    )
    line = start_line(given, ("ofrep", "unleash"))
    assert line["environment"] == "staging"
    assert line["kafka"] == "kafka-1:9092"
    assert line["redis"] == "redis://cache:6379/1"
    assert line["redis_key_prefix"] == "rolloutd:staging:"
    assert (line["advisor"], line["ops_http"], line["flagd_sync"]) == ("off", "off", "off")
    assert line["http"] == "0.0.0.0:8080"
    assert line["planes"] == ["ofrep", "unleash"]
    assert "canary" not in json.dumps(line)


def test_a_model_is_named_with_its_address() -> None:
    """Whether advice is asked for, and where, is the first question about a gate."""
    advisor = {"url": "http://127.0.0.1:8082", "model": "small"}
    line = start_line(Settings.model_validate({"advisor": advisor}), ())
    assert line["advisor"] == "small at http://127.0.0.1:8082"
