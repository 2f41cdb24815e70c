"""A provider of OpenID Connect: code flow with PKCE, state and nonce, and checked ID tokens.

Belongs here: what is asked of the provider, and when its word is believed. Does not belong here:
cookies and pages (`controller/web/page/sign_in.py`). Authlib and joserfc check the tokens; the
requests are ours, because they have to be bounded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from controller.adapters.http.bounded import AnswerRefused, read_answer
from controller.adapters.http.pool import CancellablePool
from controller.errors import ConfigInvalid, ProviderUnavailable, SignInRefused
from controller.ports.people import Person, SignInBegun
from controller.settings.sign_in import CALLBACK, OidcSettings, SignInSettings
from controller.text import one_line

#: Asymmetric ones alone: whoever can check a token must not be able to make one.
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA")
CALL_SECONDS: Final = 5.0
MAX_BYTES: Final = 256 * 1024
#: What the provider says of itself is read again after so long.
KEPT_SECONDS: Final = 3_600.0
#: Keys are read again for a token with an unknown one, but not more often.
KEYS_AGAIN_SECONDS: Final = 10.0
#: Seconds that the provider's clock may differ from ours.
LEEWAY: Final = 60
MOST_GROUPS: Final = 500
_NEEDED: Final = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")


class OidcProvider:
    """Implements `controller.ports.people.IdentityProvider`."""

    def __init__(self, settings: OidcSettings, redirect_uri: str) -> None:
        """Ask nothing yet. Raises ConfigInvalid without authlib, or for a wrong `ca_file`."""
        try:
            import authlib.oidc.core
        except ImportError:
            raise ConfigInvalid(
                "sign_in.oidc needs authlib, which is not installed: pip install 'rolloutd[oidc]'"
            ) from None
        self._settings = settings
        self._issuer = settings.issuer or ""
        self._redirect_uri = redirect_uri
        self._claims_class: Any = authlib.oidc.core.CodeIDToken
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigInvalid(f"sign_in.oidc.ca_file cannot be used: {error}") from error
        self._client = httpx.AsyncClient(
            timeout=CALL_SECONDS,
            trust_env=False,
            follow_redirects=False,
            transport=CancellablePool(context, httpx.Limits(max_connections=10)),
        )
        self._metadata: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, Any] | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def begin(self) -> SignInBegun:
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        metadata = await self._provider()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        address = prepare_grant_uri(
            metadata["authorization_endpoint"],
            self._settings.client_id,
            "code",
            redirect_uri=self._redirect_uri,
            scope=" ".join(self._settings.scopes),
            state=state,
            nonce=nonce,
            code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )
        return SignInBegun(str(address), state, nonce, verifier)

    async def finish(self, code: str, begun: SignInBegun) -> Person:
        metadata = await self._provider()
        tokens = await self._redeem(metadata, code, begun.verifier)
        access_token = tokens.get("access_token")
        claims = await self._checked(metadata, tokens.get("id_token"), begun.nonce, access_token)
        names = {self._settings.name_claim, self._settings.groups_claim}
        if self._settings.name_claim == "email":
            names.add("email_verified")
        if names - claims.keys() and isinstance(access_token, str):
            info = await self._user_info(metadata, access_token, claims["sub"])
            claims = _combined(claims, info)
        return self._person(claims)

    def _person(self, claims: Mapping[str, Any]) -> Person:
        name = claims.get(self._settings.name_claim)
        if not isinstance(name, str) or not name.strip():
            raise SignInRefused(
                f"the provider names no `{self._settings.name_claim}` (sign_in.oidc.name_claim): "
                f"add a scope that has it, or name another claim"
            )
        if self._settings.name_claim == "email" and not _is_verified(claims):
            raise SignInRefused(
                "the provider does not say that it has verified this e-mail address "
                "(email_verified): verify it there, or name another claim that people cannot "
                "choose themselves (sign_in.oidc.name_claim)"
            )
        groups = claims.get(self._settings.groups_claim, [])
        groups = [groups] if isinstance(groups, str) else groups
        known = [one for one in groups if isinstance(one, str)] if isinstance(groups, list) else []
        return Person(name, frozenset(known[:MOST_GROUPS]))

    # --- the ID token ---

    async def _checked(
        self, metadata: Mapping[str, Any], token: object, nonce: str, access_token: object
    ) -> dict[str, Any]:
        """Return the claims of an ID token that is for us, now, and for this sign-in."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        if not isinstance(token, str):
            raise SignInRefused("the provider gave no ID token: is `openid` among the scopes?")
        for attempt in (1, 2):
            keys = await self._key_set(metadata, is_again=attempt == 2)
            try:
                decoded = jwt.decode(token, keys, algorithms=list(ALGORITHMS))
                break
            except (JoseError, ValueError, TypeError) as error:
                if attempt == 2:
                    raise _refused(error) from error
        else:  # pragma: no cover  # the second attempt raises
            raise AssertionError
        claims = self._claims_class(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": metadata["issuer"]},
                "aud": {"essential": True, "value": self._settings.client_id},
                "sub": {"essential": True},
                "exp": {"essential": True},
            },
            params={
                "nonce": nonce,
                "client_id": self._settings.client_id,
                "access_token": access_token,
            },
        )
        try:
            claims.validate(now=int(time.time()), leeway=LEEWAY)
        except (JoseError, ValueError, TypeError) as error:
            raise _refused(error) from error
        return dict(claims)

    async def _key_set(self, metadata: Mapping[str, Any], *, is_again: bool) -> Any:
        """Return the provider's keys; those that are kept, unless one of them is not known."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        now = time.monotonic()
        if self._keys is not None:
            age = now - self._keys[0]
            if age < (KEYS_AGAIN_SECONDS if is_again else KEPT_SECONDS):
                return self._keys[1]
        document = await self._json("GET", metadata["jwks_uri"])
        try:
            keys = KeySet.import_key_set({"keys": list(document["keys"])})
        except (JoseError, LookupError, ValueError, TypeError) as error:
            raise ProviderUnavailable(f"the provider's keys cannot be read: {error}") from error
        self._keys = (now, keys)
        return keys

    # --- requests ---

    async def _provider(self) -> Mapping[str, Any]:
        """Return what the provider says of itself, kept for an hour."""
        now = time.monotonic()
        if self._metadata is not None and now - self._metadata[0] < KEPT_SECONDS:
            return self._metadata[1]
        address = f"{self._issuer}/.well-known/openid-configuration"
        document = await self._json("GET", address)
        if missing := [name for name in _NEEDED if not isinstance(document.get(name), str)]:
            raise ProviderUnavailable(f"{address} has no {', '.join(missing)}")
        if document["issuer"].rstrip("/") != self._issuer:
            raise ProviderUnavailable(f"{address} is of another issuer: fix sign_in.oidc.issuer")
        for name in (*_NEEDED[1:], "userinfo_endpoint"):
            scheme = _scheme(document.get(name) or self._issuer)
            if scheme not in ("https", urlsplit(self._issuer).scheme):
                raise ProviderUnavailable(f"{address}: {name} is not https")
        self._metadata = (now, document)
        return document

    async def _redeem(
        self, metadata: Mapping[str, Any], code: str, verifier: str
    ) -> dict[str, Any]:
        """Return the tokens for a code. Raises SignInRefused where the provider refuses it."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        client_id, secret = self._settings.client_id, self._settings.client_secret
        methods = metadata.get("token_endpoint_auth_methods_supported")
        if not isinstance(methods, list) or not methods:
            methods = ["client_secret_basic"]
        if secret is None:
            form["client_id"] = client_id
        elif "client_secret_basic" in methods:
            pair = f"{quote(client_id, safe='')}:{quote(secret.get_secret_value(), safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": client_id, "client_secret": secret.get_secret_value()}
        return await self._json("POST", metadata["token_endpoint"], headers, form)

    async def _user_info(
        self, metadata: Mapping[str, Any], access_token: str, subject: str
    ) -> dict[str, Any]:
        """Return further claims about the same person; none where the provider has no more."""
        address = metadata.get("userinfo_endpoint")
        if not isinstance(address, str):
            return {}
        headers = {"authorization": f"Bearer {access_token}"}
        claims = await self._json("GET", address, headers)
        if claims.get("sub") != subject:
            raise SignInRefused("the provider answered about somebody else")
        return claims

    async def _json(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return a JSON object. Raises SignInRefused for status 400 to 499 of a POST."""
        where = f"the OpenID Connect provider at {urlsplit(address).netloc}"
        try:
            async with asyncio.timeout(CALL_SECONDS):  # httpx's is for each read alone
                request = self._client.build_request(
                    method,
                    address,
                    headers={"accept": "application/json", "accept-encoding": "identity"}
                    | dict(headers or {}),
                    data=form,
                )
                response = await self._client.send(request, stream=True)
                body = await read_answer(response, MAX_BYTES)
            document = json.loads(body) if body.strip() else {}
        except (httpx.HTTPError, httpx.InvalidURL) as trouble:
            why = one_line(str(trouble) or type(trouble).__name__)
            raise ProviderUnavailable(f"{where} does not answer: {why}; try again") from trouble
        except TimeoutError as trouble:
            why = f"no complete answer within {CALL_SECONDS:g} s; try again"
            raise ProviderUnavailable(f"{where} gave {why}") from trouble
        except (AnswerRefused, ValueError, RecursionError) as trouble:
            raise ProviderUnavailable(f"{where} does not answer as one") from trouble
        if method == "POST" and 400 <= response.status_code < 500:
            code = document.get("error") if isinstance(document, dict) else None
            raise SignInRefused(
                f"the provider refused it ({one_line(str(code))[:100]}): sign in again"
            )
        if response.status_code != 200 or not isinstance(document, dict):
            raise ProviderUnavailable(f"{where} answers {response.status_code}; try again")
        return document


def make_provider(settings: SignInSettings) -> OidcProvider | None:
    """Return the provider, None where none is set. Raises ConfigInvalid."""
    if settings.oidc.issuer is None:
        return None
    return OidcProvider(settings.oidc, f"{settings.public_url}{CALLBACK}")


def _scheme(address: object) -> str:
    """Return the scheme of an address, empty for what is none."""
    try:
        return urlsplit(address).scheme if isinstance(address, str) else ""
    except ValueError:
        return ""


def _is_verified(claims: Mapping[str, Any]) -> bool:
    """Return whether the provider says that the e-mail is verified; some say it as text."""
    said = claims.get("email_verified")
    return said is True or said == "true"


def _combined(claims: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ID token's claims, and those that only the user info has.

    An e-mail and whether it is verified come from one of the two: what one says of its address is
    not said of the other's.
    """
    pair = ("email", "email_verified")
    of_token = claims.keys() >= set(pair) or "email" not in info
    source = claims if of_token else info
    return {**info, **claims, **{name: source.get(name) for name in pair}}


def _refused(error: Exception) -> SignInRefused:
    return SignInRefused(
        f"the ID token is not accepted ({one_line(str(error))[:200]}): sign in again"
    )
