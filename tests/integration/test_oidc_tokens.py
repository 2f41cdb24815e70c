"""A provider that lies, or that somebody stands in for: no ID token that is wrong lets anybody in.

The real provider never sends these, so this one is ours, on a real socket.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controller.adapters.oidc import OidcProvider, make_provider
from controller.errors import ProviderUnavailable, SignInRefused
from controller.ports.people import Person, SignInBegun
from controller.settings.sign_in import SignInSettings
from controller.web.server import HttpServer
from tests.fault_server import Exchange, fault_server

KEY = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
OTHER = RSAKey.generate_key(2048, {"kid": "one"}, private=True)
SECRET = "s" * 40
BEGUN = SignInBegun("", "state", "nonce", "v" * 43)


class Provider:
    """Answers as a test says."""

    def __init__(self) -> None:
        self.issuer = ""
        self.key: Any = KEY
        self.header: dict[str, Any] = {"alg": "RS256", "kid": "one"}
        self.changed: dict[str, Any] = {}
        self.documents: dict[str, Any] = {}
        self.token: str | None = None

    def id_token(self) -> str:
        """Return an ID token, right but for what a test changed."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": "1",
            "aud": "rolloutd",
            "exp": now + 300,
            "iat": now,
            "nonce": "nonce",
            "email": "ada@example.org",
            "email_verified": True,
            "groups": ["sre", 7],
            **self.changed,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(self.header, claims, self.key, algorithms=["RS256", "HS256", "none"])

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        name = request.url.path.rsplit("/", 1)[-1]
        if name in self.documents:
            made = self.documents[name]
            return made if isinstance(made, Response) else JSONResponse(made)
        if name == "openid-configuration":
            found = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/auth",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/jwks",
                "userinfo_endpoint": f"{self.issuer}/me",
            }
            return JSONResponse(found)
        if name == "jwks":
            return JSONResponse({"keys": [KEY.as_dict(private=False)]})
        if name == "me":
            return JSONResponse({"sub": "1"})
        token = self.id_token() if self.token is None else self.token
        return JSONResponse({"access_token": "a", "token_type": "Bearer", "id_token": token})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """A provider on loopback."""
    made = Provider()
    app = Starlette(routes=[Route("/{path:path}", made.answer, methods=["GET", "POST"])])
    server = HttpServer(app, port=0)
    await server.start()
    made.issuer = f"http://127.0.0.1:{server.port}"
    yield made
    await server.stop(1)


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[OidcProvider]:
    """What asks it."""
    oidc = {"issuer": provider.issuer, "client_id": "rolloutd", "client_secret": SECRET}
    fields = {"access_file": "x", "public_url": "http://localhost:8080", "oidc": oidc}
    made = make_provider(SignInSettings.model_validate(fields))
    assert made is not None
    yield made
    await made.close()


async def test_a_right_token_names_a_person(provider: Provider, client: OidcProvider) -> None:
    """Groups that are no text are left out."""
    person = await client.finish("code", BEGUN)
    assert person == Person("ada@example.org", frozenset({"sre"}))


@pytest.mark.parametrize(
    "changed",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": ["another", "rolloutd"]},
        {"aud": ["rolloutd", "another"], "azp": "another"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 9_999_999_999},
        {"iat": 9_999_999_999},
        {"sub": None},
        {"at_hash": "wrong"},
        {"email": None},
        {"email": ""},
        {"email": ["ada@example.org"]},
    ],
    ids=str,
)
async def test_a_token_for_another_or_another_time_is_refused(
    provider: Provider, client: OidcProvider, changed: dict[str, Any]
) -> None:
    """Each claim that must be right is checked."""
    provider.changed = changed
    with pytest.raises(SignInRefused):
        await client.finish("code", BEGUN)


@pytest.mark.parametrize(
    "said", [False, "false", "False", "TRUE", 0, 1, "", [True], None], ids=repr
)
async def test_an_address_that_is_not_verified_is_refused(
    provider: Provider, client: OidcProvider, said: object
) -> None:
    """Also where the provider says nothing, or says it as text; the message names the setting."""
    provider.changed = {"email_verified": said}
    with pytest.raises(SignInRefused, match=r"sign_in\.oidc\.name_claim"):
        await client.finish("code", BEGUN)


async def test_an_address_that_is_verified_in_words_is_accepted(
    provider: Provider, client: OidcProvider
) -> None:
    """Some providers send every claim as text."""
    provider.changed = {"email_verified": "true"}
    assert (await client.finish("code", BEGUN)).name == "ada@example.org"


@pytest.mark.parametrize(
    ("in_token", "in_info", "name"),
    [
        ({}, {"email": "ada@example.org", "email_verified": True}, "ada@example.org"),
        ({"email": "root@example.org"}, {"email_verified": True}, None),
        (
            {"email": "root@example.org"},
            {"email": "eve@example.org", "email_verified": True},
            "eve@example.org",
        ),
        ({"email_verified": True}, {"email": "root@example.org"}, None),
        (
            {"email": "eve@example.org", "email_verified": False},
            {"email": "eve@example.org", "email_verified": True},
            None,
        ),
    ],
)
async def test_an_address_is_verified_by_the_document_that_names_it(
    provider: Provider,
    client: OidcProvider,
    in_token: dict[str, Any],
    in_info: dict[str, Any],
    name: str | None,
) -> None:
    """One document's word is not taken for the other's address."""
    provider.changed = {"email": None, "email_verified": None, **in_token}
    provider.documents["me"] = {"sub": "1", **in_info}
    if name is None:
        with pytest.raises(SignInRefused):
            await client.finish("code", BEGUN)
    else:
        assert (await client.finish("code", BEGUN)).name == name


async def test_another_claim_needs_no_verification(provider: Provider) -> None:
    """Only an e-mail address is one that people may have chosen themselves."""
    oidc = {"issuer": provider.issuer, "client_id": "rolloutd", "name_claim": "sub"}
    fields = {"access_file": "x", "public_url": "http://localhost:8080", "oidc": oidc}
    made = make_provider(SignInSettings.model_validate(fields))
    assert made is not None
    provider.changed = {"email_verified": None}
    assert (await made.finish("code", BEGUN)).name == "1"
    await made.close()


def by_another_key(provider: Provider) -> None:
    """Sign with a key that only pretends to be the provider's."""
    provider.key = OTHER


def by_our_secret(provider: Provider) -> None:
    """Sign with what we share, as anybody could who has it."""
    provider.key, provider.header = OctKey.import_key(SECRET), {"alg": "HS256"}


def by_the_public_key(provider: Provider) -> None:
    """Sign with the public key as if it were a shared secret."""
    head = _part({"alg": "HS256", "kid": "one"})
    body = provider.id_token().split(".")[1]
    signature = hmac.digest(KEY.as_pem(private=False), f"{head}.{body}".encode(), "sha256")
    provider.token = f"{head}.{body}.{_text(signature)}"


def _part(fields: dict[str, Any]) -> str:
    return _text(json.dumps(fields).encode())


def _text(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def not_at_all(provider: Provider) -> None:
    """Leave the signature out."""
    head, body, _ = provider.id_token().split(".")
    provider.token = f"{head}.{body}."


def as_garbage(provider: Provider) -> None:
    """Send no token."""
    provider.token = "x.y.z"


@pytest.mark.parametrize(
    "sign", [by_another_key, by_our_secret, by_the_public_key, not_at_all, as_garbage]
)
async def test_a_token_that_the_provider_did_not_sign_is_refused(
    provider: Provider, client: OidcProvider, sign: Callable[[Provider], None]
) -> None:
    """Whatever its header says."""
    sign(provider)
    with pytest.raises(SignInRefused, match="not accepted"):
        await client.finish("code", BEGUN)


async def test_user_info_about_somebody_else_is_refused(
    provider: Provider, client: OidcProvider
) -> None:
    """Its claims would belong to another person."""
    provider.changed = {"groups": None}
    provider.documents["me"] = {"sub": "2", "groups": ["admins"]}
    with pytest.raises(SignInRefused, match="somebody else"):
        await client.finish("code", BEGUN)


@pytest.mark.parametrize(
    "document",
    [
        Response(b"x" * 300_000),
        Response(b"[" * 100_000),
        Response(b"<html>"),
        Response(status_code=503),
        Response(status_code=302, headers={"location": "http://127.0.0.1:1/"}),
        [],
        {},
        {"issuer": "http://another.example"},
    ],
    ids=lambda one: str(one)[:40],
)
async def test_a_provider_that_answers_nonsense_is_said(
    provider: Provider, client: OidcProvider, document: Any
) -> None:
    """Too much, no JSON, a redirect, or another issuer's document; nothing is followed."""
    provider.documents["openid-configuration"] = document
    with pytest.raises(ProviderUnavailable):
        await client.begin()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("userinfo_endpoint", 5),
        ("userinfo_endpoint", ["https://a"]),
        ("authorization_endpoint", "http://["),
    ],
)
async def test_what_is_no_address_is_said(
    provider: Provider, client: OidcProvider, name: str, value: Any
) -> None:
    """It was a mistake of ours, with status 500."""
    whole = {one: f"{provider.issuer}/{one}" for one in ("token_endpoint", "jwks_uri")}
    whole |= {"issuer": provider.issuer, "authorization_endpoint": f"{provider.issuer}/auth"}
    provider.documents["openid-configuration"] = {**whole, name: value}
    with pytest.raises(ProviderUnavailable, match=f"{name} is not https"):
        await client.begin()


async def test_a_provider_that_never_ends_is_not_waited_for() -> None:
    """It sends a byte now and then, and each read is in time."""

    async def drip(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
        while True:
            await exchange.send(b" ")
            await asyncio.sleep(0.1)

    async with fault_server(drip) as server:
        fields = {"access_file": "x", "public_url": "http://localhost:8080"}
        oidc = {"issuer": server.url, "client_id": "rolloutd"}
        made = make_provider(SignInSettings.model_validate({**fields, "oidc": oidc}))
        assert made is not None
        with pytest.raises(ProviderUnavailable, match="no complete answer within 5 s"):
            async with asyncio.timeout(30):
                await made.begin()
        await made.close()


async def test_a_provider_that_is_away_is_said(client: OidcProvider, provider: Provider) -> None:
    """With its address."""
    settings = SignInSettings.model_validate(
        {
            "access_file": "x",
            "public_url": "http://localhost:8080",
            "oidc": {"issuer": "http://127.0.0.1:1", "client_id": "rolloutd"},
        }
    )
    away = make_provider(settings)
    assert away is not None
    with pytest.raises(ProviderUnavailable, match=r"127\.0\.0\.1:1 does not answer"):
        await away.begin()
    await away.close()
