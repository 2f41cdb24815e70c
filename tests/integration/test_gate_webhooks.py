"""Gate webhooks over real sockets: an answer, or the name of why there is none; never a pass."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from controller.adapters.gate_webhooks import HttpGateWebhooks
from controller.codec.decisions import to_judgement_record
from controller.core.plan import GateWebhook
from controller.core.rollout import Gating
from controller.errors import ConfigInvalid, NotAnswered
from controller.settings.gate_webhooks import GateEndpointSettings, GateWebhooksSettings
from schemas.gate_question import GateQuestion
from schemas.terms import GateAnswer, HealthGap
from tests.builders import HOUR, T0, make_judgement, make_plan, make_rollout
from tests.fault_server import fault_server
from tests.gate_webhooks import GAPS, GateService
from tests.notification_services import SECRET

GATE = Gating(0, "c1.7", T0, T0 + HOUR)
ROLLOUT = make_rollout(
    plan=make_plan(gate_webhooks=(GateWebhook("audit"),), owner="ada"), phase=GATE, revision=7
)
JUDGEMENT = make_judgement()


def settings(url: str, **fields: Any) -> dict[str, GateEndpointSettings]:
    """Return the settings of one endpoint."""
    endpoint = {"url": url, "secret": SECRET, "timeout_seconds": 0.5, **fields}
    return dict(GateWebhooksSettings.model_validate({"endpoints": {"audit": endpoint}}).endpoints)


@asynccontextmanager
async def asking(service: GateService, **fields: Any) -> AsyncIterator[HttpGateWebhooks]:
    """Yield webhooks of which one is this service."""
    async with fault_server(service.answer) as server:
        made = HttpGateWebhooks(settings(f"{server.url}/gate", **fields), "/rolloutd/test")
        yield made
        await made.close()


async def ask(webhooks: HttpGateWebhooks, endpoint: str = "audit") -> tuple[GateAnswer, str]:
    """Return the answer about the gate."""
    return await webhooks.ask(endpoint, ROLLOUT, GATE, JUDGEMENT, T0 + HOUR)


@pytest.mark.parametrize("answer", list(GateAnswer))
async def test_an_answer_comes_with_its_reason(answer: GateAnswer) -> None:
    """What is asked is signed, and has all the evidence."""
    service = GateService(answer.value)
    async with asking(service) as webhooks:
        assert await ask(webhooks) == (answer, f"it is set to {answer}")
    assert service.faults == []
    question = GateQuestion.model_validate(service.asked[0])
    assert (question.flag, question.gate_id, question.revision) == ("new-checkout", "c1.7", 7)
    assert (question.percent, question.next_percent, question.owner) == (10.0, 50.0, "ada")
    assert question.judgement == to_judgement_record(JUDGEMENT)


@pytest.mark.parametrize("mode", list(GAPS))
async def test_each_bad_answer_has_its_name(mode: str) -> None:
    """Also where its body says `pass`: nobody knows who wrote it."""
    service = GateService(mode)
    async with asking(service) as webhooks:
        began = time.monotonic()
        with pytest.raises(NotAnswered) as caught:
            await ask(webhooks)
        assert caught.value.gap == HealthGap(GAPS[mode])
        assert "127.0.0.1" in str(caught.value)
        assert len(str(caught.value)) < 500
        if mode in ("hang", "slow"):
            assert time.monotonic() - began >= 0.5
        service.mode = "pass"
        assert (await ask(webhooks))[0] is GateAnswer.PASS  # nothing of it is left


async def test_no_server_and_no_address_have_their_names() -> None:
    """The second one is a mistake in the settings of this replica."""
    async with fault_server(GateService().answer) as server:
        url = server.url
    webhooks = HttpGateWebhooks(settings(url))
    for endpoint, gap in (
        ("audit", HealthGap.WEBHOOK_NO_ANSWER),
        ("another", HealthGap.WEBHOOK_NOT_SET),
    ):
        with pytest.raises(NotAnswered) as caught:
            await ask(webhooks, endpoint)
        assert caught.value.gap is gap
    await webhooks.close()


async def test_a_redirect_is_not_followed() -> None:
    """Wherever it points to, nobody there is called."""
    elsewhere = GateService("pass")
    async with fault_server(elsewhere.answer) as inside:

        async def redirect(exchange: Any) -> None:
            await exchange.answer("", status="308 Moved", headers={"Location": inside.url})

        async with fault_server(redirect) as server:
            webhooks = HttpGateWebhooks(settings(server.url))
            with pytest.raises(NotAnswered, match="redirects are not followed"):
                await ask(webhooks)
            await webhooks.close()
    assert elsewhere.asked == []


async def test_questions_to_one_endpoint_run_side_by_side() -> None:
    """Five flags at a gate take as long as one."""
    service = GateService("hang")
    async with asking(service) as webhooks:
        began = time.monotonic()
        asked = [ask(webhooks) for _ in range(5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(one, NotAnswered) for one in answers)
        assert time.monotonic() - began < 2.4  # one after the other would take 2.5 s
    assert len(service.asked) == 5


async def test_a_reason_cannot_forge_a_terminal_or_flood_a_page() -> None:
    """It is shown to people as it is, so that it is one line of bounded length."""

    async def answer(exchange: Any) -> None:
        await exchange.answer('{"answer": "hold", "reason": "a\\u001b[2Jb\\n' + "x" * 900 + '"}')

    async with fault_server(answer) as server:
        webhooks = HttpGateWebhooks(settings(server.url))
        _, reason = await ask(webhooks)
        await webhooks.close()
    assert reason.isprintable()
    assert len(reason) <= 300


async def test_an_endpoint_proves_who_it_is(certificate: tuple[Path, Path]) -> None:
    """Without the authority that signed its certificate it is sent no evidence."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    service = GateService("pass")
    async with fault_server(service.answer, tls=context) as server:
        strange = HttpGateWebhooks(settings(server.url))
        with pytest.raises(NotAnswered) as caught:
            await ask(strange)
        assert (caught.value.gap, service.asked) == (HealthGap.WEBHOOK_NO_ANSWER, [])
        known = HttpGateWebhooks(settings(server.url, ca_file=certificate[0]))
        assert (await ask(known))[0] is GateAnswer.PASS
        await asyncio.gather(strange.close(), known.close())


def test_settings_that_cannot_work_are_refused() -> None:
    """With the place, and without the secret."""
    with pytest.raises(ConfigInvalid, match="a signing secret is") as caught:
        HttpGateWebhooks(settings("http://127.0.0.1:1", secret="whsec_short"))
    assert str(caught.value).startswith("gate_webhooks.endpoints.audit: ")
    assert "whsec_short" not in str(caught.value)
    with pytest.raises(ConfigInvalid, match=r"ca_file .+ cannot be used"):
        HttpGateWebhooks(settings("https://127.0.0.1:1", ca_file="/nowhere.pem"))
    wrong: list[dict[str, Any]] = [
        {"url": "ftp://x"},
        {"url": "http://a:b@x"},
        {"timeout_seconds": 61},
    ]
    for fields in wrong:
        with pytest.raises(ValidationError):
            settings(**{"url": "http://x", **fields})


def test_plain_text_over_a_network_is_told() -> None:
    """Whoever is on the way could answer `pass`."""
    made = GateWebhooksSettings(endpoints=settings("http://gate.example"))
    (warning,) = made.insecure_connections("gate_webhooks")
    assert "gate_webhooks.endpoints.audit" in warning
    assert not list(
        GateWebhooksSettings(endpoints=settings("http://127.0.0.1:1")).insecure_connections("x")
    )
