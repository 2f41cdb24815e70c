"""Gate webhooks over HTTP: a signed question, and an answer or a named reason why there is none.

Source: Standard Webhooks 1.0, for the signature. No call here decides anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
from pydantic import ValidationError

from controller.adapters.http.bounded import AnswerRefused, AnswerTooLong
from controller.adapters.http.signing import RequestSigner
from controller.codec.cloud_events import SOURCE
from controller.codec.gate_questions import gate_question
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Gating, Rollout
from controller.errors import ConfigInvalid, NotAnswered
from controller.settings.gate_webhooks import GateEndpointSettings
from controller.text import describe_faults, excerpt
from schemas.gate_question import GateReply
from schemas.terms import GateAnswer, HealthGap

if TYPE_CHECKING:
    from controller.adapters.http.posting import HttpAnswer

_MOST_WORDS: Final = 300
#: Questions at once to one endpoint: so many flags may be at a gate together.
_CONNECTIONS: Final = 8


class _Endpoint:
    """One address with its key and connections."""

    def __init__(self, name: str, settings: GateEndpointSettings) -> None:
        # Here, with httpx: not where no endpoint is set, nor for the first question at a gate.
        from controller.adapters.http.posting import Poster

        where = f"gate_webhooks.endpoints.{name}"
        self.url = settings.url
        self.host = urlsplit(settings.url).hostname or ""
        self.seconds = settings.timeout_seconds
        try:
            self.signer = RequestSigner(settings.secret.get_secret_value())
        except ConfigInvalid as refused:
            raise ConfigInvalid(f"{where}: {refused}") from None
        self.poster = Poster(where, [settings.url], settings.ca_file, connections=_CONNECTIONS)


class HttpGateWebhooks:
    """Implements `ports.GateWebhooks`. Made without a running loop."""

    def __init__(self, settings: Mapping[str, GateEndpointSettings], source: str = SOURCE) -> None:
        """`source` is that of the CloudEvents. Raises ConfigInvalid for an unusable secret."""
        self._source = source
        self._endpoints = {name: _Endpoint(name, one) for name, one in settings.items()}

    @property
    def endpoints(self) -> frozenset[str]:
        """The names that the settings have an address for."""
        return frozenset(self._endpoints)

    async def ask(
        self, endpoint: str, rollout: Rollout, gate: Gating, judgement: Judgement, at: datetime
    ) -> tuple[GateAnswer, str]:
        """Return the answer about an open gate, and its reason. Raises NotAnswered."""
        known = self._endpoints.get(endpoint)
        if known is None:
            why = f"gate_webhooks.endpoints has no {endpoint} in the settings of this replica"
            raise NotAnswered(HealthGap.WEBHOOK_NOT_SET, why)
        import httpx

        # Each question has an id of its own: it shows newer evidence than the one before.
        about = f"{gate.gate_id}/{endpoint}/{at.isoformat()}"
        message_id = f"msg_{hashlib.sha256(about.encode()).hexdigest()[:32]}"
        body = gate_question(rollout, gate, judgement, at, message_id, self._source)
        headers = known.signer.headers(message_id, int(time.time()), body)
        headers["Content-Type"] = "application/cloudevents+json"
        try:
            async with asyncio.timeout(known.seconds):
                answer = await known.poster.send(known.url, body, headers)
        except TimeoutError:
            why = f"{known.host}: no answer within {known.seconds:g} s"
            raise NotAnswered(HealthGap.WEBHOOK_NO_ANSWER, why) from None
        except AnswerTooLong as refused:
            raise NotAnswered(HealthGap.WEBHOOK_TOO_LARGE, f"{known.host}: {refused}") from None
        except AnswerRefused as refused:
            raise NotAnswered(HealthGap.WEBHOOK_MALFORMED, f"{known.host}: {refused}") from None
        except (httpx.HTTPError, OSError, ValueError) as error:
            words = excerpt(str(error), _MOST_WORDS) or type(error).__name__
            raise NotAnswered(HealthGap.WEBHOOK_NO_ANSWER, f"{known.host}: {words}") from None
        return _reading(answer, known.host)

    async def close(self) -> None:
        """Drop the connections."""
        await asyncio.gather(*(one.poster.close() for one in self._endpoints.values()))


def _reading(answer: HttpAnswer, host: str) -> tuple[GateAnswer, str]:
    """Return what an answer says. Raises NotAnswered."""
    if 300 <= answer.status < 400:
        to = excerpt(answer.headers.get("location", ""), 100) or "nowhere"
        why = f"{host} answered {answer.status}, to {to}: redirects are not followed"
        raise NotAnswered(HealthGap.WEBHOOK_REDIRECT, why)
    words = excerpt(answer.body.decode(errors="replace"), _MOST_WORDS)
    if not 200 <= answer.status < 300:
        why = f"{host} answered {answer.status}" + (f": {words}" if words else "")
        raise NotAnswered(HealthGap.WEBHOOK_HTTP_ERROR, why)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        why = f"{host} answered with Content-Type {excerpt(kind, 60) or '(none)'}"
        raise NotAnswered(HealthGap.WEBHOOK_WRONG_TYPE, f"{why}, not application/json")
    try:
        reply = GateReply.model_validate(msgspec.json.decode(answer.body))
    except ValidationError as error:
        why = f"{host}: {describe_faults(error)}"
        raise NotAnswered(HealthGap.WEBHOOK_MALFORMED, why) from None
    except (ValueError, RecursionError):
        why = f"{host} answered no JSON: {words[:100] or '(nothing)'}"
        raise NotAnswered(HealthGap.WEBHOOK_MALFORMED, why) from None
    return reply.answer, excerpt(reply.reason, _MOST_WORDS)
