"""One question over HTTP, under a deadline, and what of its answer is no number.

Belongs here: the call. Does not belong here: the form of one system's answers (the files beside
this one).
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from controller.adapters.http.bounded import AnswerRefused, read_answer
from controller.adapters.http.hiding import Hiding, basic_pair, sign_in_secrets
from controller.errors import ConfigInvalid, NotMeasured
from controller.settings.checks import AskedSettings
from schemas.terms import MeasurementGap

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES: Final = 2_000_000
_MAX_WORDS: Final = 300


class MeasuringSystem:
    """A system that is asked. Made without a running loop; a context manager closes it."""

    def __init__(self, name: str, settings: AskedSettings) -> None:
        """`name` is that of the settings' section. Raises ConfigInvalid."""
        self.name = name
        self._settings = settings
        secrets = sign_in_secrets(settings.username, settings.password, settings.token)
        self._hiding = Hiding(secrets)
        self._http: httpx.AsyncClient | None = None
        self._context: ssl.SSLContext | None = None
        if settings.ca_file is not None:
            try:
                self._context = ssl.create_default_context(cafile=settings.ca_file)
            except (OSError, ValueError) as error:
                raise ConfigInvalid(f"{name}: ca_file cannot be used: {error}") from error

    @property
    def is_set(self) -> bool:
        """Whether the settings name its address."""
        return self._settings.url is not None

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return the body of a successful answer. Raises NotMeasured."""
        return await self._ask("GET", path, query)

    async def post(self, path: str, form: Mapping[str, str]) -> bytes:
        """Return the body of a successful answer to a form. Raises NotMeasured."""
        return await self._ask("POST", path, form)

    async def _ask(self, method: str, path: str, values: Mapping[str, str]) -> bytes:
        url = self._settings.url
        if url is None:
            raise NotMeasured(MeasurementGap.REFUSED, f"{self.name}.url is not set")
        import httpx

        host, seconds = urlsplit(url).hostname, self._settings.timeout_seconds
        is_form = method == "POST"
        target = url + path + (f"?{urlencode(values)}" if values and not is_form else "")
        try:
            async with asyncio.timeout(seconds):
                client = self._client()
                request = client.build_request(
                    method, target, headers=self._headers(), data=values if is_form else None
                )
                response = await client.send(request, stream=True)
                body = await read_answer(response, MAX_ANSWER_BYTES)
        except TimeoutError:
            why = f"{host}: no answer within {seconds:g} s"
            raise NotMeasured(MeasurementGap.NO_ANSWER, why) from None
        except AnswerRefused as refused:
            raise NotMeasured(MeasurementGap.REFUSED, f"{host}: {refused}") from None
        except (httpx.HTTPError, OSError, ValueError) as error:
            words = self.words(str(error)) or type(error).__name__
            raise NotMeasured(MeasurementGap.NO_ANSWER, f"{host}: {words}") from None
        if not response.is_success:
            why = f"{host} answered {response.status_code}: {self.words(body)}"
            raise NotMeasured(MeasurementGap.REFUSED, why)
        return body

    def words(self, said: object, most: int = _MAX_WORDS) -> str:
        """Return the first words of what the server says, without the secrets that it was sent."""
        try:
            text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        except ValueError:  # an integer of 5,000 digits in it
            return "a number that is too long"
        return self._hiding.excerpt(text, most)

    def _headers(self) -> dict[str, str]:
        settings, headers = self._settings, {"Accept": "application/json, text/plain"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"
        elif settings.password is not None:
            pair = basic_pair(settings.username, settings.password.get_secret_value())
            headers["Authorization"] = f"Basic {pair}"
        if settings.organization:
            headers["X-Scope-OrgID"] = settings.organization
        return headers

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            import httpx

            from controller.adapters.http.pool import make_client

            limits = httpx.Limits(max_connections=8, max_keepalive_connections=2)
            self._http = make_client(self._context or ssl.create_default_context(), limits)
        return self._http

    async def close(self) -> None:
        """Drop the connections."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()


def document_in(body: bytes, server: MeasuringSystem) -> Mapping[str, Any]:
    """Return a JSON object. Raises NotMeasured for anything else."""
    try:
        found = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        said = server.words(body, 100) or "nothing at all"
        why = f"{server.name} answers no JSON object: {said}"
        raise NotMeasured(MeasurementGap.REFUSED, why)
    return found


def finite(value: object, server: MeasuringSystem) -> float:
    """Return a number. Raises NotMeasured for what is none, NaN and infinity among it."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # the last: an integer of 400 digits
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        why = f"{server.name} answers {server.words(value, 40)}, which is no number"
        raise NotMeasured(MeasurementGap.NOT_A_NUMBER, why)
    return number
