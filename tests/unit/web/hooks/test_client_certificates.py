"""Which certificate a proxy says that the sender has shown."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from controller.web.clients import networks_of
from controller.web.hooks.client_certificates import certificate_names, told_fingerprint
from tests.certificates import write_certificate

HASH = "ab" * 32
PROXIES = networks_of(["10.0.0.5", "10.1.0.0/16"])


@pytest.fixture
def pem(tmp_path: Path) -> str:
    """A certificate."""
    write_certificate(tmp_path / "crt", tmp_path / "key")
    return (tmp_path / "crt").read_text()


def test_every_proxy_tells_it_in_its_own_form(pem: str) -> None:
    """The fingerprint is the same."""
    der = ssl.PEM_cert_to_DER_cert(pem)
    wanted = hashlib.sha256(der).hexdigest()
    in_base64 = base64.b64encode(der).decode()
    colons = ":".join(wanted[at : at + 2] for at in range(0, 64, 2)).upper()
    for told in (
        wanted,
        wanted.upper(),
        colons,
        f":{in_base64}:",
        quote(pem, safe=""),
        in_base64,
        quote(in_base64),
        f'By=spiffe://x;Hash={wanted};Subject="CN=x"',
        f"Hash={wanted}",
    ):
        assert told_fingerprint(told) == wanted, told


@pytest.mark.parametrize(
    "told",
    [
        "",
        "-",
        "(null)",
        "CN=alertmanager",
        HASH[:-1],
        HASH + "0",
        f"Hash={HASH},Hash={'cd' * 32}",
        f'Subject="x;Hash={HASH};";Hash={"cd" * 32}',
        f'Subject="x Hash={HASH}"',
        base64.b64encode(b"no certificate").decode(),
        ":::",
        "-----BEGIN CERTIFICATE-----",
        "%2d%2d%2d%2d%2dBEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----",
        "\xff" * 50,
        f"{HASH},{HASH}",
    ],
)
def test_what_is_no_single_certificate_is_none(told: str) -> None:
    """Nobody is let in by it."""
    assert told_fingerprint(told) is None


def test_the_header_counts_from_the_proxy_alone() -> None:
    """From anybody else it is as if it were not there."""
    scope = {"headers": [(b"client-cert", HASH.encode())]}
    for address, counts in (
        ("10.0.0.5", True),
        ("::ffff:10.1.2.3", True),
        ("10.0.0.6", False),
        ("", False),
    ):
        found = certificate_names({**scope, "client": (address, 1)}, PROXIES, "client-cert")
        assert found == ({f"sha256:{HASH}"} if counts else set())
    assert not certificate_names({**scope, "client": ("10.0.0.5", 1)}, [], "client-cert")
    assert not certificate_names({**scope, "client": ("10.0.0.5", 1)}, PROXIES, "x-other")
