"""The client certificate that Kafka is shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from controller.errors import ConfigInvalid
from controller.settings.kafka import KafkaSecurity
from tests.certificates import write_certificate


def test_openssl_asks_nobody_for_the_password_of_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no password it asks on the terminal, and the process waits there for ever."""
    passwords: list[Any] = []
    monkeypatch.setattr(
        ssl.SSLContext, "load_cert_chain", lambda *given: passwords.append(given[-1])
    )
    (tmp_path / "our.crt").touch()
    KafkaSecurity(protocol="SSL", certificate_file=tmp_path / "our.crt").ssl_context()
    assert passwords == [""]


def test_the_files_of_a_certificate_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """OpenSSL says "PEM lib" of them."""
    ours, others = tmp_path / "our.crt", tmp_path / "others.key"
    write_certificate(ours, tmp_path / "our.key")
    write_certificate(tmp_path / "others.crt", others)
    security = KafkaSecurity(protocol="SSL", certificate_file=ours, key_file=others)
    with pytest.raises(ConfigInvalid, match=f"{ours} with the key in {others} cannot be used"):
        security.ssl_context()
