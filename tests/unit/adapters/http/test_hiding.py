"""What a server says, without the secrets that it was sent."""

from __future__ import annotations

from pydantic import SecretStr

from controller.adapters.http.hiding import HIDDEN, Hiding, basic_pair, sign_in_secrets


def test_every_form_of_what_we_sign_in_with_is_hidden() -> None:
    """The password alone, as basic authentication sends it, and each other secret as it is."""
    password, token = "correct horse", "t0ken-of-ours"
    hiding = Hiding(sign_in_secrets("ada", SecretStr(password), None, SecretStr(token)))
    for secret in (password, basic_pair("ada", password), token):
        assert hiding.hide(f"no route for {secret}!") == f"no route for {HIDDEN}!"


def test_a_service_without_secrets_hides_nothing() -> None:
    """A name without a password is not sent."""
    assert list(sign_in_secrets("ada", None, None)) == []
    assert Hiding(()).hide("no route for ada") == "no route for ada"
