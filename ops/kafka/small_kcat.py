"""Sends lines to Kafka as the documents' `kcat -P` does, where kcat is not installed.

It knows the options that the documents use, and no others: `-P`, `-b`, `-t`, one of `-k` and `-K`,
and `-X topic.partitioner=murmur2_random`, which it does in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

#: What `-X` may say. Apps and rolloutd select partitions in this way.
PARTITIONER = "topic.partitioner=murmur2_random"


def read_options() -> argparse.Namespace:
    """Return what was typed. Exits 2 for anything that this stand-in does not do."""
    parser = argparse.ArgumentParser(prog="kcat", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-P", action="store_true", required=True, help="send: nothing else is here")
    parser.add_argument("-b", metavar="HOST:PORT", required=True, help="Kafka's address")
    parser.add_argument("-t", metavar="TOPIC", required=True)
    keys = parser.add_mutually_exclusive_group(required=True)
    keys.add_argument("-k", metavar="KEY", help="the key of every record")
    keys.add_argument("-K", metavar="SEPARATOR", help="each line is KEY, this, and the value")
    parser.add_argument("-X", metavar="SETTING", choices=[PARTITIONER], help=PARTITIONER)
    return parser.parse_args()


async def send(options: argparse.Namespace, lines: list[str]) -> None:
    """Send each line as a record, and wait until Kafka has all of them."""
    producer = AIOKafkaProducer(bootstrap_servers=options.b)
    try:
        await producer.start()
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
    try:
        asyncio.run(send(options, sys.stdin.read().splitlines()))
    except KafkaError as error:
        sys.stderr.write(f"kcat: {options.b}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
