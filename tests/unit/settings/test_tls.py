"""Settings of TLS on the HTTP listener: what does not fit together is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import ConfigInvalid
from controller.settings import insecure_connections, load_settings

PAIR = {"ROLLOUTD_HTTP__CERTIFICATE_FILE": "/x.crt", "ROLLOUTD_HTTP__KEY_FILE": "/x.key"}


def test_a_key_alone_is_refused() -> None:
    """Without a certificate it would mean nothing."""
    with pytest.raises(ConfigInvalid, match="http: key_file needs certificate_file"):
        load_settings(None, {"ROLLOUTD_HTTP__KEY_FILE": "/x.key"})


def test_people_are_sent_to_no_address_that_nobody_answers() -> None:
    """Behind a proxy with TLS the address is https too; the reverse cannot be."""
    with pytest.raises(ConfigInvalid, match="write https://"):
        load_settings(None, {**PAIR, "ROLLOUTD_SIGN_IN__PUBLIC_URL": "http://rollouts.internal"})
    load_settings(None, {**PAIR, "ROLLOUTD_SIGN_IN__PUBLIC_URL": "https://rollouts.internal"})
    load_settings(None, {"ROLLOUTD_SIGN_IN__PUBLIC_URL": "https://rollouts.internal"})


def test_a_token_behind_tls_is_no_open_door() -> None:
    """Without TLS, beyond loopback, it is."""
    token = {"ROLLOUTD_HTTP__HOST": "0.0.0.0", "ROLLOUTD_HTTP__COMMAND_TOKEN": "ab" * 16}
    open_doors = insecure_connections(load_settings(None, token))
    assert any("http.command_token" in one for one in open_doors)
    open_doors = insecure_connections(load_settings(None, {**token, **PAIR}))
    assert not any("http.command_token" in one for one in open_doors)


def test_a_key_that_everybody_may_read_is_an_open_door(tmp_path: Path) -> None:
    """In a file of its own or with the certificate; one that is not there is said elsewhere."""
    key = tmp_path / "tls.key"
    key.write_text("a key")
    pair = {"ROLLOUTD_HTTP__CERTIFICATE_FILE": "/x.crt", "ROLLOUTD_HTTP__KEY_FILE": str(key)}
    together = {"ROLLOUTD_HTTP__CERTIFICATE_FILE": str(key)}
    for mode, is_open in ((0o644, True), (0o640, False), (0o600, False)):
        key.chmod(mode)
        for variables, name in ((pair, "key_file"), (together, "certificate_file")):
            doors = insecure_connections(load_settings(None, variables))
            named = [one for one in doors if one.startswith(f"http.{name}: ")]
            assert bool(named) == is_open
            assert all(f"chmod o-rwx {key}" in one for one in named)
    assert not any("key" in one for one in insecure_connections(load_settings(None, PAIR)))


def test_a_hook_whose_token_travels_in_plain_text_is_an_open_door() -> None:
    """Not one that signs, and none behind TLS or on loopback."""
    endpoints = {
        "ROLLOUTD_HOOKS__ENDPOINTS__PROD__SOURCE": "alertmanager",
        "ROLLOUTD_HOOKS__ENDPOINTS__PROD__TOKEN": "a token of sixteen",
        "ROLLOUTD_HOOKS__ENDPOINTS__PAGER__SOURCE": "pagerduty",
        "ROLLOUTD_HOOKS__ENDPOINTS__PAGER__SECRET": "a secret of sixteen",
    }

    def doors(**more: str) -> list[str]:
        found = insecure_connections(load_settings(None, {**endpoints, **more}))
        return [one for one in found if "hooks" in one]

    (door,) = doors(ROLLOUTD_HTTP__HOST="0.0.0.0")
    assert "hooks.endpoints.prod: whoever sees a delivery" in door
    assert doors() == []
    assert doors(ROLLOUTD_HTTP__HOST="0.0.0.0", **PAIR) == []


def test_a_certificate_that_nobody_is_asked_for_is_refused() -> None:
    """It needs the authorities of clients, or a proxy that asks: that tells fingerprints alone."""
    endpoint = {"ROLLOUTD_HOOKS__ENDPOINTS__PROD__SOURCE": "alertmanager"}
    certificates = "ROLLOUTD_HOOKS__ENDPOINTS__PROD__CERTIFICATES"
    named = {**endpoint, certificates: '["cn:monitor"]'}
    printed = {**endpoint, certificates: f'["sha256:{"AB" * 32}"]'}
    authorities = {**PAIR, "ROLLOUTD_HTTP__CLIENT_CA_FILE": "/ca.crt"}
    proxy = {"ROLLOUTD_HOOKS__PROXY__ADDRESSES": '["10.0.0.5"]'}
    with pytest.raises(ConfigInvalid, match="client_ca_file needs certificate_file"):
        load_settings(None, {"ROLLOUTD_HTTP__CLIENT_CA_FILE": "/ca.crt"})
    for one in (named, printed):
        with pytest.raises(ConfigInvalid, match="nobody is asked for one"):
            load_settings(None, {**one, **PAIR})
        load_settings(None, {**one, **authorities})
    with pytest.raises(ConfigInvalid, match="only fingerprints are compared"):
        load_settings(None, {**named, **proxy})
    with pytest.raises(ConfigInvalid, match="is everybody"):
        load_settings(None, {**printed, "ROLLOUTD_HOOKS__PROXY__ADDRESSES": '["0.0.0.0/0"]'})
    settings = load_settings(None, {**printed, **proxy, "ROLLOUTD_HTTP__HOST": "0.0.0.0"})
    assert settings.hooks.endpoints["prod"].certificates == (f"sha256:{'ab' * 32}",)
    assert not any("hooks" in one for one in insecure_connections(settings))
