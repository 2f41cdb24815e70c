"""Sends lines to Kafka as the documents' `kcat -P` does, where kcat is not installed.

It knows the options that the documents use, and no others: `-P`, `-b`, `-t`, one of `-k` and `-K`,
`-X topic.partitioner=murmur2_random`, which it does in any case, and `-X message.timeout.ms=N`.
It always ends: without the latter after ten seconds in which Kafka took nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import sys
from datetime import timedelta

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownTopicOrPartitionError

#: What `-X` may say. Apps and rolloutd select partitions in this way.
PARTITIONER = "topic.partitioner=murmur2_random"
TIMEOUT = re.compile(r"message\.timeout\.ms=(\d{1,7})")
DEADLINE_SECONDS = 10.0


def setting(text: str) -> timedelta | None:
    """Return the deadline that a setting gives, None for the partitioner."""
    match = TIMEOUT.fullmatch(text)
    if match is None and text != PARTITIONER:
        raise argparse.ArgumentTypeError(f"only {PARTITIONER} and message.timeout.ms=N are known")
    return None if match is None else timedelta(milliseconds=int(match[1]))


def read_options() -> argparse.Namespace:
    """Return what was typed. Exits 2 for anything that this stand-in does not do."""
    parser = argparse.ArgumentParser(prog="kcat", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-P", action="store_true", required=True, help="send: nothing else is here")
    parser.add_argument("-b", metavar="HOST:PORT", required=True, help="Kafka's address")
    parser.add_argument("-t", metavar="TOPIC", required=True)
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("-k", metavar="KEY", help="the key of every record")
    keys.add_argument("-K", metavar="SEPARATOR", help="each line is KEY, this, and the value")
    parser.add_argument(
        *("-X",),
        metavar="SETTING",
        type=setting,
        action="append",
        default=[],
        help=f"{PARTITIONER}, or message.timeout.ms=N: end after so long",
    )
    return parser.parse_args()


async def send(options: argparse.Namespace, lines: list[str]) -> None:
    """Send each line as a record, and wait until Kafka has all of them."""
    producer = AIOKafkaProducer(bootstrap_servers=options.b)
    try:
        await producer.start()
        # Without the topic the client would ask for it again and again.
        await producer.partitions_for(options.t)
        for line in lines:
            key, value = (options.k, line)
            if options.K is not None:
                key, _, value = line.partition(options.K)
            await producer.send(options.t, value.encode(), key.encode())
        await producer.flush()
    finally:
        await producer.stop()


def main() -> int:
    """Send standard input. Return 0, or 1 where Kafka did not take it."""
    options = read_options()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it repeats what is said below once
    deadlines = [one.total_seconds() for one in options.X if one is not None]
    seconds = min(deadlines, default=DEADLINE_SECONDS)

    async def within() -> None:
        async with asyncio.timeout(seconds):
            await send(options, lines)

    lines = sys.stdin.read().splitlines()
    try:
        asyncio.run(within())
    except KafkaConnectionError:
        why = "no broker answers there; see whether it runs, and its address"
    except (TimeoutError, UnknownTopicOrPartitionError):
        why = f"it took nothing for topic {options.t} in {seconds:g} s; see whether there is one"
    except KafkaError as error:
        why = str(error) or type(error).__name__
    else:
        return 0
    sys.stderr.write(f"kcat: {options.b}: {why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
