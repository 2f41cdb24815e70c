"""What we rely on of Unleash's Admin API, in memory on a real socket.

For faults that a real one has too seldom.

It answers as Unleash 8.2 does, which the contract tests show by running on both. Faults are scripts
that answer in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fault_server import Exchange, FaultServer, Script, fault_server
from tests.unleash.server import ADMIN_TOKEN, BACKEND_TOKEN

ENVIRONMENTS = ("development", "production")
WHO = "admin"


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, name: str, message: str = "") -> None:
        super().__init__(message or name)
        self.status = status
        self.name = name


class FakeUnleash:
    """Flags of one project, and what was done to them."""

    def __init__(self) -> None:
        self.flags: dict[str, dict[str, Any]] = {}
        self.archived: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.writes: list[str] = []  # method and path of everything that changed something
        self.faults: list[
            tuple[str, Script]
        ] = []  # (pattern of "METHOD /path", what happens in place of an answer)
        self.pauses: list[
            tuple[str, Callable[[], Any]]
        ] = []  # (pattern, awaited before the request is carried out)
        self.server: FaultServer | None = None
        self._ids = itertools.count(1)

    @property
    def url(self) -> str:
        """Base address while it runs."""
        assert self.server is not None
        return self.server.url

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeUnleash]:
        """Serve on a free port of loopback."""
        async with fault_server(self._answer) as server:
            self.server = server
            yield self

    def percent(self, flag_key: str, environment: str = "development") -> float:
        """Return the share of users that SDKs would let in."""
        here = self.flags.get(flag_key, {}).get(environment)
        if here is None or not here["enabled"]:
            return 0.0
        return max(
            (
                float(each["parameters"]["rollout"])
                for each in here["strategies"]
                if not each["disabled"]
            ),
            default=0.0,
        )

    # --- one exchange ---

    async def _answer(self, exchange: Exchange) -> None:
        method, target, _ = exchange.request.line.split(" ")
        for pattern, before in self.pauses:
            if re.search(pattern, f"{method} {target}"):
                await before()
        for pattern, fault in self.faults:
            if re.search(pattern, f"{method} {target}"):
                await fault(exchange)
                return
        try:
            status, body = self._carry_out(method, target, exchange)
        except Refusal as problem:
            said = {
                "name": problem.name,
                "message": str(problem),
                "details": [{"message": str(problem)}],
            }
            status, body = problem.status, said
        await exchange.answer("" if body is None else json.dumps(body), status=f"{status} X")

    def _carry_out(self, method: str, target: str, exchange: Exchange) -> tuple[int, Any]:
        token = exchange.request.headers.get("authorization")
        if token == BACKEND_TOKEN:
            raise Refusal(
                403, "", "invalid token: expected a different token type for this endpoint"
            )
        if token != ADMIN_TOKEN:
            raise Refusal(401, "UnauthorizedError", "You must log in to use Unleash.")
        parts = urlsplit(target)
        body = json.loads(exchange.request.body) if exchange.request.body else None
        steps = [unquote(step) for step in parts.path.removeprefix("/api/admin/").split("/")]
        if method != "GET":
            self.writes.append(f"{method} {parts.path}")
        match method, steps:
            case "GET", ["search", "events"]:
                asked = parse_qs(parts.query)
                flag_key, limit = (
                    asked["feature"][0].removeprefix("IS:"),
                    int(asked.get("limit", ["50"])[0]),
                )
                found = [
                    event for event in reversed(self.events) if event["featureName"] == flag_key
                ]
                return 200, {"events": found[:limit], "total": len(found)}
            case "POST", ["archive", "revive", flag_key]:
                self.flags[flag_key] = self.archived.pop(flag_key)
                self._tell("feature-revived", flag_key)
                return 200, None
            case _, ["projects", project, "features", *rest]:
                if project != "default" and method == "POST":
                    raise Refusal(
                        404, "NotFoundError", f"Active project with id {project} does not exist"
                    )
                return self._feature(method, project, rest, body)
        raise Refusal(404, "NotFoundError")

    def _feature(self, method: str, project: str, rest: list[str], body: Any) -> tuple[int, Any]:
        match method, rest:
            case "POST", []:
                return self._create(body)
            case "GET", [flag_key]:
                flag = self._flag(flag_key if project == "default" else "")
                environments = [{"name": name, **flag[name]} for name in ENVIRONMENTS]
                return 200, {
                    "name": flag_key,
                    "type": flag["type"],
                    "project": "default",
                    "environments": environments,
                }
            case "DELETE", [flag_key]:
                flag = self._flag(flag_key)
                for name in ENVIRONMENTS:
                    flag[name]["enabled"] = False
                self.archived[flag_key] = self.flags.pop(flag_key)
                self._tell("feature-archived", flag_key)
                return 202, None
            case "POST", [flag_key, "environments", environment, ("on" | "off") as switch]:
                here = self._here(flag_key, environment)
                if switch == "on" and all(each["disabled"] for each in here["strategies"]):
                    self._add(
                        flag_key,
                        environment,
                        {"name": "flexibleRollout", "parameters": {"rollout": "100"}},
                    )
                if here["enabled"] != (switch == "on"):
                    here["enabled"] = switch == "on"
                    self._tell(
                        f"feature-environment-{'enabled' if switch == 'on' else 'disabled'}",
                        flag_key,
                        environment,
                    )
                return 200, None
            case "POST", [flag_key, "environments", environment, "strategies"]:
                return 200, self._add(flag_key, environment, body)
            case "POST", [flag_key, "environments", environment, "strategies", "set-sort-order"]:
                places = {each["id"]: each["sortOrder"] for each in body}
                for each in self._here(flag_key, environment)["strategies"]:
                    each["sortOrder"] = places.get(each["id"], each["sortOrder"])
                self._sort(flag_key, environment)
                self._tell("strategy-order-changed", flag_key, environment)
                return 200, None
            case "PATCH", [flag_key, "environments", environment, "strategies", strategy_id]:
                return 200, self._patch(flag_key, environment, strategy_id, body)
            case "DELETE", [flag_key, "environments", environment, "strategies", strategy_id]:
                here = self._here(flag_key, environment)
                strategy = self._strategy(here, strategy_id)
                here["strategies"].remove(strategy)
                self._tell("feature-strategy-remove", flag_key, environment, before=strategy)
                self._off_without_strategies(flag_key, environment)
                return 200, None
        raise Refusal(404, "NotFoundError")

    def _create(self, body: Any) -> tuple[int, Any]:
        flag_key = body["name"]
        if flag_key in self.archived:
            raise Refusal(409, "NameExistsError", "An archived flag with that name already exists")
        if flag_key in self.flags:
            raise Refusal(409, "NameExistsError", "A flag with that name already exists")
        empty: dict[str, Any] = {
            name: {"enabled": False, "strategies": [], "lastSeenAt": None} for name in ENVIRONMENTS
        }
        self.flags[flag_key] = {"type": body["type"], **empty}
        self._tell("feature-created", flag_key)
        return 201, {"name": flag_key}

    def _flag(self, flag_key: str) -> dict[str, Any]:
        if flag_key not in self.flags:
            raise Refusal(404, "NotFoundError", f"Could not find feature flag with name {flag_key}")
        return self.flags[flag_key]

    def _here(self, flag_key: str, environment: str) -> dict[str, Any]:
        here: dict[str, Any] = self._flag(flag_key)[environment]
        return here

    def _strategy(self, here: dict[str, Any], strategy_id: str) -> dict[str, Any]:
        for each in here["strategies"]:
            if each["id"] == strategy_id:
                found: dict[str, Any] = each
                return found
        raise Refusal(404, "NotFoundError", f"Could not find strategy with id: {strategy_id}")

    def _add(self, flag_key: str, environment: str, body: Any) -> dict[str, Any]:
        strategy = _normal(
            {
                "id": f"{next(self._ids):026d}",
                "title": None,
                "disabled": False,
                "constraints": [],
                "variants": [],
                "segments": [],
                **body,
            }
        )
        others = self._here(flag_key, environment)["strategies"]
        strategy.setdefault(
            "sortOrder", max((each["sortOrder"] for each in others), default=-1) + 1
        )
        others.append(strategy)
        self._sort(flag_key, environment)
        self._tell("feature-strategy-add", flag_key, environment, after=strategy)
        return strategy

    def _sort(self, flag_key: str, environment: str) -> None:
        self._here(flag_key, environment)["strategies"].sort(
            key=lambda each: int(each["sortOrder"])
        )

    def _patch(
        self, flag_key: str, environment: str, strategy_id: str, patch: Any
    ) -> dict[str, Any]:
        here = self._here(flag_key, environment)
        strategy = self._strategy(here, strategy_id)
        changed = json.loads(json.dumps(strategy))
        for operation in patch:
            *way, last = operation["path"].split("/")[1:]
            place = changed
            for step in way:
                place = place[step]
            if operation["op"] == "test" and place.get(last) != operation["value"]:
                raise Refusal(
                    500,
                    "UnknownError",
                    "Test operation failed\nname: TEST_OPERATION_FAILED\nindex: 0",
                )
            if operation["op"] == "replace":
                place[last] = operation["value"]
        strategy.update(_normal(changed))
        self._tell("feature-strategy-update", flag_key, environment, after=strategy)
        self._off_without_strategies(flag_key, environment)
        return strategy

    def _off_without_strategies(self, flag_key: str, environment: str) -> None:
        here = self._here(flag_key, environment)
        if here["enabled"] and all(each["disabled"] for each in here["strategies"]):
            here["enabled"] = False
            self._tell("feature-environment-disabled", flag_key, environment)

    def _tell(
        self,
        kind: str,
        flag_key: str,
        environment: str | None = None,
        *,
        after: Any = None,
        before: Any = None,
    ) -> None:
        event = {
            "id": len(self.events) + 1,
            "type": kind,
            "createdBy": WHO,
            "featureName": flag_key,
            "environment": environment,
            "data": after,
            "preData": before,
        }
        self.events.append(json.loads(json.dumps(event)))


def _normal(strategy: dict[str, Any]) -> dict[str, Any]:
    """Return a strategy as Unleash keeps it: parameters are text, variants are sorted."""
    parameters = {name: str(value) for name, value in strategy["parameters"].items()}
    return {
        **strategy,
        "parameters": parameters,
        "variants": sorted(strategy["variants"], key=lambda each: str(each["name"])),
    }


async def never() -> None:
    """Wait for ever."""
    await asyncio.get_running_loop().create_future()
