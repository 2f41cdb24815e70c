"""Services that an HTTP plane calls, and a plane at one of them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from controller.adapters.http_plane.plane import HttpPlane
from controller.clock import SystemClock
from controller.core.rollout import Rollout
from controller.ports import FlagPlane, Served
from controller.settings.planes import HttpPlaneSettings
from tests.fault_server import (
    Exchange,
    Script,
)

SECRET = "token-3f9a"
SIGNING_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class HandClock(SystemClock):
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__(monotonic=lambda: self.seconds)


@asynccontextmanager
async def plane_at(
    template: str | Path, clock: HandClock | None = None, **fields: Any
) -> AsyncIterator[HttpPlane]:
    """Give a plane by a template."""
    settings = {"template": str(template), "secret": SECRET, **fields}
    plane = HttpPlane("test", HttpPlaneSettings.model_validate(settings), clock or HandClock())
    try:
        yield plane
    finally:
        await plane.close()


async def serve(plane: FlagPlane, rollout: Rollout) -> Served:
    """Do what actuation does: look, serve if need be, look again."""
    served = await plane.look(rollout)
    if served.difference is None:
        return served
    await plane.serve(rollout)
    return await plane.look(rollout)


def service(handle: Callable[[str, str, Any], Any]) -> Script:
    """Return a script for a JSON service.

    `handle` gets method, address and body, and gives an answer or an HTTP status.
    """

    async def script(exchange: Exchange) -> None:
        method, address, _ = exchange.request.line.split(" ")
        assert SECRET in exchange.request.headers["authorization"]
        answer = handle(
            method, address, json.loads(exchange.request.body) if exchange.request.body else None
        )
        if isinstance(answer, int):
            await exchange.answer("{}", status=f"{answer} Refused")
        else:
            await exchange.answer(json.dumps(answer))

    return script


class LaunchDarkly:
    """One boolean flag in one environment, as the REST API shows and patches it."""

    def __init__(self) -> None:
        self.on = False
        self.fallthrough: dict[str, Any] = {"variation": 1}
        self.variations = [{"_id": "id-true", "value": True}, {"_id": "id-false", "value": False}]

    def __call__(self, method: str, address: str, body: Any) -> Any:
        parts = urlsplit(address)
        if parts.path != "/api/v2/flags/shop/new-checkout":
            return 404
        if method == "GET":
            assert parse_qs(parts.query) == {"env": ["production"]}
            environment = {"on": self.on, "fallthrough": self.fallthrough, "offVariation": 1}
            return {
                "key": "new-checkout",
                "variations": self.variations,
                "environments": {"production": environment},
            }
        assert (method, body["environmentKey"]) == ("PATCH", "production")
        for instruction in body["instructions"]:
            match instruction:
                case {"kind": "turnFlagOn"}:
                    self.on = True
                case {"kind": "turnFlagOff"}:
                    self.on = False
                case {
                    "kind": "updateFallthroughVariationOrRollout",
                    "rolloutWeights": weights,
                    "rolloutContextKind": "user",
                }:
                    if sum(weights.values()) != 100_000:
                        return 400
                    ids = [variation["_id"] for variation in self.variations]
                    split = [
                        {"variation": ids.index(each), "weight": weight}
                        for each, weight in weights.items()
                    ]
                    self.fallthrough = {
                        "rollout": {"variations": split, "bucketBy": instruction["rolloutBucketBy"]}
                    }
                case _:
                    return 400
        return {}


class Flagsmith:
    """One multivariate feature in one environment.

    The search also finds a feature whose name is longer.
    """

    def __init__(self, variants: int = 1) -> None:
        self.enabled = False
        self.weights = {33 + number: 0.0 for number in range(variants)}

    def __call__(self, method: str, address: str, body: Any) -> Any:
        parts = urlsplit(address)
        if parts.path == "/api/v1/projects/7/features/":
            assert parse_qs(parts.query)["search"] == ["new-checkout"]
            options = [{"id": variant} for variant in self.weights]
            other = {"id": 4, "name": "new-checkout-two", "multivariate_options": []}
            return {
                "results": [
                    other,
                    {"id": 5, "name": "new-checkout", "multivariate_options": options},
                ]
            }
        if parts.path != "/api/__future__/environments/key/features/5/":
            return 404
        if method == "PATCH":
            default = body["environment_default"]
            if {variant["id"] for variant in default["variants"]} != self.weights.keys():
                return 400
            self.enabled = default["enabled"]
            self.weights = {variant["id"]: variant["weight"] for variant in default["variants"]}
        variants = [{"id": variant, "weight": weight} for variant, weight in self.weights.items()]
        return {
            "environment_default": {"enabled": self.enabled, "variants": variants},
            "segment_overrides": [],
        }


class GrowthBook:
    """One feature whose rules are replaced as a whole."""

    def __init__(self) -> None:
        self.rules = [
            {
                "id": "fr_1",
                "type": "force",
                "description": "staff",
                "value": "true",
                "enabled": True,
            },
            {
                "id": "fr_2",
                "type": "rollout",
                "description": "rolloutd",
                "value": "true",
                "coverage": 0,
                "enabled": True,
            },
        ]

    def __call__(self, method: str, address: str, body: Any) -> Any:
        if address != "/v2/features/new-checkout":
            return 404
        if method == "POST":
            assert body.keys() == {"rules"}
            self.rules = body["rules"]
        return {
            "feature": {
                "id": "new-checkout",
                "rules": self.rules,
                "environments": {"production": {"enabled": True}},
            }
        }
