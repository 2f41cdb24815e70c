from __future__ import annotations

import ast
import asyncio
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka
from tests.chaos.recount import Findings
from tests.chaos.rounds import Chaos, run
from tests.live import Client, DaemonProcess, make_command, quick_plan

ROOT = Path(__file__).parents[2]
NO_COMMANDS = 1e6  # seconds between two commands


def no_faults(findings: Findings) -> None:
    """Fail with what was found."""
    assert not findings.faults, "\n".join([findings.summary(), *findings.faults[:30]])


@pytest.mark.real_kafka
@pytest.mark.parametrize(
    ("kills", "seed", "longest_seconds"),
    [
        (2, 1, 120.0),
        pytest.param(10, 1, 120.0, marks=pytest.mark.rare),
        pytest.param(200, 2, math.inf, marks=pytest.mark.long),
    ],
)
async def test_kill9_loses_and_doubles_nothing(
    kafka: str, tmp_path: Path, kills: int, seed: int, longest_seconds: float
) -> None:
    """A daemon killed at random moments counts, answers and decides everything exactly once."""
    [(_, figures, findings)] = await run(
        kafka,
        kills=kills,
        zombies=0,
        seed=seed,
        directory=tmp_path,
        longest_seconds=longest_seconds,
    )
    no_faults(findings)
    assert figures.rounds == kills or longest_seconds < math.inf
    assert figures.busy_seconds, "never came back to work within a round"
    assert findings.exact_arms > 0
    assert findings.rises > 0


@pytest.mark.real_kafka
@pytest.mark.rare
async def test_kill9_of_a_static_member(kafka: str, tmp_path: Path) -> None:
    """A replica with its own name gets its partitions back before its old session ends."""
    environ = {
        "ROLLOUTD_KAFKA__REQUEST_TIMEOUT_SECONDS": "70"
    }  # must exceed the session, which no round could wait for
    async with Chaos(
        kafka, tmp_path, seed=3, is_static=True, session_seconds=60.0, environ=environ
    ) as chaos:
        for _ in range(3):
            await chaos.kill_round()
        no_faults(await chaos.finish())
    assert len(chaos.figures.busy_seconds) == 3, "within 30 s, half a session: nobody waited for it"


@pytest.mark.rare
@pytest.mark.real_kafka
@pytest.mark.parametrize(("rounds", "seed"), [(3, 4), pytest.param(30, 5, marks=pytest.mark.long)])
async def test_redis_killed_with_a_cut_file(
    kafka: str, tmp_path: Path, rounds: int, seed: int
) -> None:
    """Redis loses the end of its file under a running daemon, which then goes on.

    And the recount is exact.
    """
    async with Chaos(kafka, tmp_path, seed=seed, command_pause=NO_COMMANDS) as chaos:
        lost = 0
        for _ in range(rounds):
            await asyncio.sleep(chaos.dice.uniform(0.5, 3.0))
            before = await chaos.fence_sum()
            chaos.redis.kill9()
            chaos.redis.cut_aof_tail(chaos.dice.randrange(100, 60_000))
            await asyncio.sleep(chaos.dice.uniform(0.0, 2.0))
            if chaos.dice.random() < 0.5:
                chaos.daemons[0].kill9()
                chaos.daemons[0].spawn()
            chaos.redis.start()
            lost += await chaos.fence_sum() < before
            await chaos.until_busy(before)
        no_faults(await chaos.finish())
    assert lost, "the cuts took nothing: the test has lost its teeth"


@pytest.mark.rare
@pytest.mark.parametrize(
    "harm",
    ["kill9", "freeze", "restart"],
)
async def test_the_broker_goes_and_comes_back(
    own_kafka: LocalKafka, tmp_path: Path, harm: str
) -> None:
    """After a broker's restart, crash or ten frozen seconds the daemon resumes by itself.

    And the recount is exact.
    """
    async with Chaos(
        own_kafka.bootstrap, tmp_path, seed=6, session_seconds=6.0, settle=timedelta(seconds=15)
    ) as chaos:
        await asyncio.sleep(2)
        match harm:
            case "restart":
                await asyncio.to_thread(own_kafka.restart)
            case "kill9":
                own_kafka.kill9()
                await asyncio.to_thread(own_kafka.start)
            case _:
                own_kafka.pause()
                await asyncio.sleep(10)
                own_kafka.resume()
        await chaos.until_busy(await chaos.fence_sum())
        await asyncio.sleep(3)
        assert chaos.daemons[0].process is not None
        assert chaos.daemons[0].process.poll() is None, "by itself means: in the same process"
        no_faults(await chaos.finish())


@pytest.mark.real_kafka
async def test_an_order_nobody_can_read_is_set_aside(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """What is no command goes to quarantine, one with an unknown verb is rejected.

    And the next one is obeyed.
    """
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        order = make_command(CommandVerb.PAUSE, "f")
        unknown = order.model_dump_json().replace('"pause"', '"dance"').encode()
        for value in (unknown, b"\xff\x00", b"", b"[" * 10_000):
            await client.producer.send_and_wait(f"{topic_prefix}rollout.commands", value, b"f")
        answer = await client.command(CommandVerb.START, "f", plan=quick_plan("f"))
        assert answer.status == "accepted"
        assert len(await client.refusals(3)) == 3
        answers = {event["id"]: event["data"] for event in await client.read("rollout.results")}
        assert (answers[order.id]["status"], answers[order.id]["verb"]) == ("rejected", None)
        assert "roll_back" in answers[order.id]["reason"]
        assert await daemon.stop() == 0


def test_the_verifier_shares_no_code_with_the_daemon() -> None:
    """recount.py imports nothing of what it verifies."""
    tree = ast.parse((Path(__file__).parent / "recount.py").read_text())
    modules = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [
        module for module in modules if module.split(".")[0] in ("controller", "schemas", "tests")
    ]


# --- planted bugs: the rounds must notice ---


def _resume_from_committed(package: Path) -> None:
    """Read on from Kafka's committed offset.

    As most consumers do, without the checks that would stop it.
    """
    counting = package / "controller/counting"
    _swap(
        counting / "assignment.py",
        "                owned.loaded = await self._stored_totals(owned)\n",
        "                owned.loaded = await self._stored_totals(owned)\n"
        "                totals = owned.loaded[0]\n"
        "                committed = await self._events.committed(owned.partition)\n"
        "                totals.position = totals.position if committed is None else committed\n",
    )
    _swap(counting / "saving.py", "if not progress.adds_up(totals.position):", "if False:")
    _swap(counting / "partition_totals.py", "if not progress.adds_up(next_offset):", "if False:")
    backwards = "if next_offset < (expected or 0) and not is_rebase:"
    _swap(package / "controller/codec/merging.py", backwards, "if False:")


def _no_fence(package: Path) -> None:
    """Save whatever is stored."""
    _swap(
        package / "controller/adapters/redis/fenced_save.lua",
        "if (stored[1] or '') ~= expected then return {0, stored[1]} end\n",
        "",
    )


def _effects_before_save(package: Path) -> None:
    """Publish what was decided before it is saved."""
    found = "        entries, answer = self._entries(after, effects)\n"
    _swap(
        package / "controller/deciding/flag/flag_state.py",
        found,
        f"{found}        await self._dependencies.publisher.publish(entries)\n",
    )


def _several_writes(package: Path) -> None:
    """Write totals field by field, and the fence after them, in place of one HSET."""
    _swap(
        package / "controller/adapters/redis/connection.py",
        "        async def evaluate() -> Any:\n",
        "        for name in list(fields)[1::2]:\n"
        "            await self.client.hset(key, name, fields[name])\n"
        "\n"
        "        async def evaluate() -> Any:\n",
    )


def _swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has changed: plant the bug again"
    path.write_text(text.replace(old, new))


Plant = Callable[[Path], None]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of what the daemon runs."""
    for name in ("controller", "schemas"):
        shutil.copytree(
            ROOT / name, tmp_path / "planted" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path / "planted"


@pytest.mark.parametrize(
    "plant", [_resume_from_committed, _effects_before_save, _no_fence, _several_writes]
)
def test_each_bug_can_be_planted(package: Path, plant: Plant) -> None:
    """The rounds with them take long: what they are planted into may have changed since the last.

    The planted code compiles.
    """
    plant(package)
    planted = [
        path
        for path in package.rglob("*.*")
        if path.read_bytes() != (ROOT / path.relative_to(package)).read_bytes()
    ]
    assert planted
    for path in planted:
        if path.suffix == ".py":
            compile(path.read_text(), path, "exec")


@pytest.mark.long
@pytest.mark.real_kafka
@pytest.mark.parametrize("plant", [_resume_from_committed, _effects_before_save])
async def test_kill_rounds_notice(kafka: str, tmp_path: Path, package: Path, plant: Plant) -> None:
    """With a planted bug the kill rounds end with faults."""
    plant(package)
    for seed in (7, 8, 9):
        [(_, _, findings)] = await run(
            kafka, kills=15, zombies=0, seed=seed, directory=tmp_path, package=package
        )
        if findings.faults:
            return
    pytest.fail("nothing was noticed")


@pytest.mark.long
@pytest.mark.real_kafka
async def test_zombie_rounds_notice(kafka: str, tmp_path: Path, package: Path) -> None:
    """Without the check of the fence the zombie rounds end with faults."""
    _no_fence(package)
    for seed in (7, 8, 9):
        [(_, _, findings)] = await run(
            kafka, kills=0, zombies=8, seed=seed, directory=tmp_path, package=package
        )
        if findings.faults:
            return
    pytest.fail("nothing was noticed")


@pytest.mark.long
@pytest.mark.real_kafka
async def test_cut_files_notice_several_writes(kafka: str, tmp_path: Path, package: Path) -> None:
    """With several HSETs per save, cut files end with faults."""
    _several_writes(package)
    async with Chaos(kafka, tmp_path, seed=10, command_pause=NO_COMMANDS, package=package) as chaos:
        with suppress(TimeoutError):  # a partition that finds its totals broken stops for good
            for _ in range(10):
                await asyncio.sleep(chaos.dice.uniform(0.5, 1.5))
                chaos.redis.kill9()
                chaos.redis.cut_aof_tail(chaos.dice.randrange(100, 6_000))
                chaos.daemons[0].kill9()
                chaos.redis.start()
                chaos.daemons[0].spawn()
                await chaos.until_busy(await chaos.fence_sum(), 30)
        assert (await chaos.finish()).faults
