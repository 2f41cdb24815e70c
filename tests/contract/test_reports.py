"""What is shown of rollouts is kept the same in memory and in Redis."""

from __future__ import annotations

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.reports import NEWS_KEPT, RedisReports
from controller.errors import BrokenInvariant
from controller.ports import CourseKey, Reports

FLAG = "new-checkout"
COURSE = CourseKey("command-1/ä", 0)


async def test_a_flag_never_written_has_nothing(reports: Reports) -> None:
    """Nothing is no error."""
    assert await reports.read(FLAG) is None
    assert await reports.course(FLAG, COURSE) == {}
    assert list(await reports.news(FLAG, "decisions")) == []
    await reports.discard(FLAG, [COURSE])


async def test_the_newest_report_replaces_the_one_before(reports: Reports) -> None:
    """There is one report per flag."""
    await reports.write(FLAG, b"1")
    await reports.write("other", b"3")
    await reports.write(FLAG, b"2")
    assert await reports.read(FLAG) == b"2"


async def test_points_come_and_go_and_a_repeat_changes_nothing(reports: Reports) -> None:
    """Points are by second, oldest first; each visit has its own."""
    for _ in range(2):
        await reports.write(FLAG, b"1", COURSE, {30: b"c", 9: b"a"})
        await reports.write(FLAG, b"1", COURSE, {101: b"d"}, gone=[30])
    assert list((await reports.course(FLAG, COURSE)).items()) == [(9, b"a"), (101, b"d")]
    assert await reports.course(FLAG, CourseKey("command-1/ä", 1)) == {}
    assert await reports.course(FLAG, CourseKey("command-2", 0)) == {}


async def test_news_is_newest_first(reports: Reports) -> None:
    """Each topic of each flag is a list of its own."""
    await reports.append_news(FLAG, "decisions", [b"1", b"2"])
    await reports.append_news(FLAG, "decisions", [b"3"])
    await reports.append_news(FLAG, "decisions", [])
    await reports.append_news(FLAG, "alerts", [b"a"])
    assert list(await reports.news(FLAG, "decisions")) == [b"3", b"2", b"1"]
    assert list(await reports.news(FLAG, "alerts")) == [b"a"]
    assert list(await reports.news(FLAG, "decisions", most=1)) == [b"3"]


async def test_what_is_discarded_is_gone(reports: Reports) -> None:
    """Of this flag alone."""
    for flag in (FLAG, "other"):
        await reports.write(flag, b"1", COURSE, {9: b"a"})
        await reports.append_news(flag, "alerts", [b"a"])
    await reports.discard(FLAG, [COURSE])
    assert await reports.read(FLAG) is None
    assert await reports.course(FLAG, COURSE) == {}
    assert list(await reports.news(FLAG, "alerts")) == []
    assert await reports.read("other") == b"1"


@pytest.fixture
def in_redis(redis_store: RedisConnection) -> RedisReports:
    """The reports in Redis alone."""
    return RedisReports(redis_store, keep_seconds=60)


async def test_everything_in_redis_expires_and_news_is_bounded(
    redis_store: RedisConnection, in_redis: RedisReports
) -> None:
    """Flags come and go for years, and nobody else deletes these keys."""
    await in_redis.write(FLAG, b"1", COURSE, {9: b"a"})
    await in_redis.append_news(FLAG, "alerts", [b"%d" % n for n in range(NEWS_KEPT + 5)])
    keys = await redis_store.client.keys(f"{redis_store.prefix}*")
    assert len(keys) == 3
    for key in keys:
        assert 0 < await redis_store.client.ttl(key) <= 60
    news = await in_redis.news(FLAG, "alerts")
    assert len(news) == NEWS_KEPT
    assert news[0] == b"%d" % (NEWS_KEPT + 4)


async def test_strangers_fields_are_no_points(
    redis_store: RedisConnection, in_redis: RedisReports
) -> None:
    """Whatever else somebody puts there is left out."""
    await in_redis.write(FLAG, b"1", COURSE, {9: b"a"})
    (key,) = await redis_store.client.keys(f"{redis_store.prefix}course:*")
    await redis_store.client.hset(key, mapping={"x": b"y", "-1": b"z", "9" * 20: b"w"})
    assert await in_redis.course(FLAG, COURSE) == {9: b"a"}


async def test_a_key_of_another_type_is_a_mistake_and_no_outage(
    redis_store: RedisConnection, in_redis: RedisReports
) -> None:
    """It is not tried again for a second: nobody repairs it that fast."""
    await redis_store.client.set(f"{redis_store.prefix}live:{{{FLAG}}}", "junk")
    await redis_store.client.set(f"{redis_store.prefix}news:{{{FLAG}}}:alerts", "junk")
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await in_redis.write(FLAG, b"1")
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await in_redis.append_news(FLAG, "alerts", [b"a"])
