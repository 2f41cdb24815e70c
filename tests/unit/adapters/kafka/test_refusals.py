"""What a broker has against us is said in place of that none answers."""

from __future__ import annotations

import logging
import ssl
from socket import gaierror
from time import monotonic

import pytest
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from controller.adapters.kafka import refusals
from controller.adapters.kafka.client import reason_of

AWAY = KafkaConnectionError("Unable to bootstrap from [('127.0.0.1', 9092)]")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one; what was logged before is forgotten."""
    monkeypatch.setattr(refusals._refusals, "_newest", "")
    now = [monotonic()]
    monkeypatch.setattr(refusals, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (SaslAuthenticationFailed("Authentication failed: Invalid"), "kafka.security.username"),
        (UnsupportedSaslMechanismError("<conn>"), "kafka.security.sasl_mechanism"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "kafka.security.ca_file"),
        (IllegalSaslStateError("<conn>"), "kafka.security.protocol"),
        (gaierror(-2, "Name or service not known"), "kafka.bootstrap_servers"),
        (ConnectionResetError(), "kafka.security.protocol"),
        (ConnectionResetError(), "kafka.security.certificate_file"),
        (KafkaConnectionError("Connection at 127.0.0.1:9092 closed"), "kafka.security.protocol"),
    ],
)
def test_a_refusal_names_the_setting_to_correct(
    error: Exception, setting: str, clock: list[float]
) -> None:
    """As long as it is the cause of what happens now."""
    logging.getLogger("aiokafka").error('Unable connect to "%s:%s": %s', "127.0.0.1", 9092, error)
    assert setting in reason_of(AWAY)
    clock[0] += 10
    assert reason_of(AWAY) == "no broker answers"


def test_a_daemon_that_has_set_up_its_log_is_told_too() -> None:
    """It takes the handlers of libraries away."""
    library = logging.getLogger("aiokafka")
    kept = list(library.handlers)
    library.handlers.clear()
    library.error('Unable connect to "%s:%s": %s', "k", 9092, ConnectionResetError())
    library.handlers[:] = kept
    assert "kafka.security.protocol" in reason_of(AWAY)


def test_a_broker_that_is_away_refuses_nothing() -> None:
    """Nobody listens there, or its name is not known."""
    for error in (ConnectionRefusedError(111, "refused"), TimeoutError(), OSError("no such name")):
        logging.getLogger("aiokafka").error('Unable connect to "%s:%s": %s', "k", 9092, error)
        assert reason_of(AWAY) == "no broker answers"


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (10, "certificate has expired", "next: renew it"),
        (9, "certificate is not yet valid", "next: compare the clocks"),
        (62, "Hostname mismatch, certificate is not valid for 'k'.", "in kafka.bootstrap_servers"),
        (64, "IP address mismatch, certificate is not valid for 'k'.", "advertised.listeners"),
    ],
)
def test_another_authority_is_not_the_fix_of_every_certificate(
    code: int, message: str, advice: str
) -> None:
    """A certificate that has expired, or has another name, has the right authority."""
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {message} (_ssl.c:1)")
    error.verify_code, error.verify_message = code, message
    logging.getLogger("aiokafka").error('Unable connect to "%s:%s": %s', "k", 9092, error)
    said = reason_of(AWAY)
    assert message.rstrip(".") in said
    assert advice in said
    assert "ca_file" not in said
