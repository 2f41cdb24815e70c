from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from controller.ports import OutboxEntry, Rollouts, StoredRollout
from tests.builders import make_plan, make_rollout

FLAG = "new-checkout"


def entry(n: int, value: bytes = b"{}") -> OutboxEntry:
    """Return the n-th effect of the flag's first revision."""
    return OutboxEntry(
        field=f"outbox:{n}", effect_id=f"{FLAG}/1/{n}", topic="decisions", key=FLAG, value=value
    )


async def test_a_flag_never_seen_is_empty(rollouts: Rollouts) -> None:
    """A flag never seen has no rollout, token 0, no tests' state and no effects."""
    assert await rollouts.load(FLAG) == StoredRollout(None, 0, b"", [])
    assert await rollouts.answer_to(FLAG, "start-1") is None
    assert list(await rollouts.flag_keys()) == []


async def test_what_was_saved_is_loaded(rollouts: Rollouts) -> None:
    """One save keeps document, tests' state, effects and answer, and its flag is listed."""
    rollout = make_rollout()
    outbox = [entry(0, b'{"a":\n1}'), entry(1, b""), entry(2, bytes(range(256)))]
    assert await rollouts.save(
        FLAG,
        expected_token=0,
        rollout=rollout,
        tests=b"\x00\xff",
        outbox=outbox,
        answer=("start-1", b"yes\nno"),
    )
    assert await rollouts.load(FLAG) == StoredRollout(rollout, 1, b"\x00\xff", outbox)
    assert await rollouts.answer_to(FLAG, "start-1") == b"yes\nno"
    assert list(await rollouts.flag_keys()) == [FLAG]


async def test_none_leaves_a_part_as_it_is(rollouts: Rollouts) -> None:
    """A save of one part keeps all others and moves the token."""
    rollout = make_rollout()
    await rollouts.save(
        FLAG, expected_token=0, rollout=rollout, tests=b"a", outbox=[entry(0)], answer=("c", b"1")
    )
    assert await rollouts.save(FLAG, expected_token=1, tests=b"b")
    assert await rollouts.save(FLAG, expected_token=2)
    assert await rollouts.load(FLAG) == StoredRollout(rollout, 3, b"b", [entry(0)])
    assert await rollouts.save(FLAG, expected_token=3, tests=b"")
    assert (await rollouts.load(FLAG)).tests == b""


async def test_a_repeat_of_the_same_save_is_told_it_was_done(rollouts: Rollouts) -> None:
    """The same save twice writes once and is told twice that it won."""
    for _ in range(3):
        assert await rollouts.save(
            FLAG, expected_token=0, rollout=make_rollout(), outbox=[entry(0)]
        )
    assert (await rollouts.load(FLAG)).token == 1


async def test_of_two_deciders_one_wins(rollouts: Rollouts) -> None:
    """Two saves from the same token with different contents.

    One is written whole, the other not at all.
    """
    first, second = make_rollout(), replace(make_rollout(), percent=0.0, revision=2)
    won = await asyncio.gather(
        rollouts.save(FLAG, expected_token=0, rollout=first, outbox=[entry(0)]),
        rollouts.save(FLAG, expected_token=0, rollout=second, outbox=[entry(1)]),
    )
    assert sorted(won) == [False, True]
    stored = await rollouts.load(FLAG)
    winner, effect = (first, entry(0)) if won[0] else (second, entry(1))
    assert stored == StoredRollout(winner, 1, b"", [effect])


async def test_a_stale_token_writes_nothing(rollouts: Rollouts) -> None:
    """A save from an old or a future token is refused whole: no document, no effect, no answer."""
    rollout = make_rollout()
    await rollouts.save(FLAG, expected_token=0, rollout=rollout)
    await rollouts.save(FLAG, expected_token=1, tests=b"x")
    for token in (0, 1, 3):
        assert not await rollouts.save(
            FLAG,
            expected_token=token,
            rollout=replace(rollout, percent=99.0),
            outbox=[entry(5)],
            answer=("c", b""),
        )
    assert await rollouts.load(FLAG) == StoredRollout(rollout, 2, b"x", [])
    assert await rollouts.answer_to(FLAG, "c") is None


async def test_effects_come_back_in_their_order(rollouts: Rollouts) -> None:
    """Effects are loaded by number, not by name: 10 after 9."""
    for token, n in enumerate((10, 9, 11, 1)):
        await rollouts.save(FLAG, expected_token=token, outbox=[entry(n)])
    assert [each.field for each in (await rollouts.load(FLAG)).outbox] == [
        "outbox:1",
        "outbox:9",
        "outbox:10",
        "outbox:11",
    ]


async def test_removed_effects_are_gone(rollouts: Rollouts) -> None:
    """Settling deletes exactly the named effects, may be repeated, and does not move the token."""
    await rollouts.save(FLAG, expected_token=0, outbox=[entry(0), entry(1)])
    for _ in range(2):
        await rollouts.remove_effects(FLAG, ["outbox:0", "outbox:7"])
    await rollouts.remove_effects(FLAG, [])
    await rollouts.remove_effects("never-seen", ["outbox:0"])
    assert await rollouts.load(FLAG) == StoredRollout(None, 1, b"", [entry(1)])


async def test_only_effects_can_be_removed(rollouts: Rollouts) -> None:
    """A field that is no effect is never deleted and never written as one."""
    for name in ("document", "token", "outbox:", "outbox:x", "answer:c"):
        with pytest.raises(ValueError, match="outbox field"):
            await rollouts.remove_effects(FLAG, [name])
        with pytest.raises(ValueError, match="outbox field"):
            await rollouts.save(FLAG, expected_token=0, outbox=[replace(entry(0), field=name)])


async def test_flags_do_not_touch_each_other(rollouts: Rollouts) -> None:
    """Each flag has its own token and contents."""
    await rollouts.save("a", expected_token=0, tests=b"a")
    await rollouts.save("b", expected_token=0, tests=b"b")
    await rollouts.save("a", expected_token=1, tests=b"aa")
    assert [(await rollouts.load(key)).tests for key in ("a", "b")] == [b"aa", b"b"]
    assert list(await rollouts.flag_keys()) == ["a", "b"]


async def test_what_is_newer_than_known_is_found(rollouts: Rollouts) -> None:
    """Asked with the revisions known, the store names the rollouts that went on.

    And those nobody knew.
    """
    ahead, level, unheard_of = (
        make_rollout(plan=make_plan(flag_key=key), revision=3)
        for key in ("ahead", "level", "unheard-of")
    )
    for rollout in (ahead, level, unheard_of):
        await rollouts.save(rollout.flag_key, expected_token=0, rollout=rollout)
    await rollouts.save("never-started", expected_token=0, tests=b"a")
    assert list(await rollouts.newer_than({"ahead": 2, "level": 3, "elsewhere": 9})) == [
        ahead,
        unheard_of,
    ]
    assert list(await rollouts.newer_than({"ahead": 4, "level": 3, "unheard-of": 3})) == []
