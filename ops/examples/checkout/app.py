"""A shop's checkout, old and new, behind the flag `checkout-v2`.

`uvicorn --factory checkout.app:make_app`.

Reads ROLLOUTD_URL (where OFREP is served) or FLAGD_SYNC (host:port of the gRPC sync source), KAFKA
(bootstrap servers), and BAD=1 for a new checkout that loses payments.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from last_known_provider import LastKnownProvider
from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import ResolverType
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.provider import FeatureProvider

from checkout.telemetry import Emitter, EvaluationHook, OutcomeMiddleware

FLAG = "checkout-v2"
_LOST_BY_BANKS = 0.01  # of all payments, whoever sends them
_LOST_BY_A_BUG = 0.4


def make_app() -> FastAPI:
    """Return the app, wired up by the environment."""
    emitter = Emitter(os.environ["KAFKA"], source="/checkout-api")
    api.set_provider(_provider())
    api.add_hooks([EvaluationHook(emitter)])
    flags = api.get_client()
    is_bad = os.environ.get("BAD", "") not in ("", "0")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await emitter.start()
        yield
        await emitter.stop()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(OutcomeMiddleware, emitter=emitter)

    # A plain function, not a coroutine: FastAPI runs it in a thread, where asking for a flag over
    # HTTP holds nobody else up.
    @app.get("/checkout")
    def checkout(user: str, response: Response) -> dict[str, str]:
        is_new = flags.get_boolean_value(FLAG, False, EvaluationContext(targeting_key=user))
        is_lost = _pay_the_new_way(is_bad) if is_new else _pay_the_old_way()
        if is_lost:
            response.status_code = 502
        return {"version": "new" if is_new else "old"}

    @app.get("/telemetry")
    def telemetry() -> dict[str, int]:
        return emitter.counts()

    return app


def _provider() -> FeatureProvider:
    """Return where variants come from; users keep their checkout while rolloutd restarts."""
    flagd_sync = os.environ.get("FLAGD_SYNC")
    if flagd_sync:
        host, _, port = flagd_sync.rpartition(":")
        return FlagdProvider(
            resolver_type=ResolverType.IN_PROCESS, host=host, port=int(port), tls=False
        )
    # OFREP's provider alone keeps nothing.
    return LastKnownProvider(OFREPProvider(os.environ["ROLLOUTD_URL"], timeout=1.0))


def _pay_the_old_way() -> bool:
    """Return whether the payment was lost."""
    time.sleep(random.uniform(0.004, 0.010))
    return random.random() < _LOST_BY_BANKS


def _pay_the_new_way(is_bad: bool) -> bool:
    """Return whether the payment was lost."""
    time.sleep(random.uniform(0.003, 0.008))
    return random.random() < (_LOST_BY_A_BUG if is_bad else _LOST_BY_BANKS)
