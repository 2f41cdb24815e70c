"""What is done to a batch of orders, without Prefect or flags: plain functions of plain values."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

_EUROS_PER = {"EUR": 1.0, "USD": 0.9, "GBP": 1.2}
_ORDERS = 200
_FIFTY = 50
_RATES_SECONDS = 0.2
_WITH_REFUNDS = 0.7  # of all batches
_BROKEN_UPSTREAM = 0.02  # of all batches: what arrives does not add up, whoever transforms it


class BatchInvalid(Exception):
    """The transformed batch does not add up to what the source says of it."""


@dataclass(frozen=True, slots=True)
class Order:
    """One line of the source; a refund is negative."""

    amount: float
    currency: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What arrives: orders, and their total in euros as the source has it."""

    batch_id: str
    orders: tuple[Order, ...]
    total_euros: float


def arrive(batch_id: str) -> Batch:
    """Return the batch of that id, always the same one."""
    chance = random.Random(batch_id)
    has_refunds = chance.random() < _WITH_REFUNDS
    orders = tuple(
        Order(
            chance.uniform(-40, 200) if has_refunds else chance.uniform(5, 200),
            chance.choice(list(_EUROS_PER)),
        )
        for _ in range(_ORDERS)
    )
    total = sum(order.amount * _EUROS_PER[order.currency] for order in orders)
    return Batch(batch_id, orders, total + (1_000 if chance.random() < _BROKEN_UPSTREAM else 0))


def rates() -> dict[str, float]:
    """Ask the rates service for the day's rates, which takes its time."""
    time.sleep(_RATES_SECONDS)
    return _EUROS_PER


def transform_v1(batch: Batch) -> list[float]:
    """Return every order in euros."""
    euros_per = rates()
    euros = []
    for order in batch.orders:
        if order.currency == "EUR":
            euros.append(order.amount)
        else:
            euros.append(order.amount * euros_per[order.currency])
    return euros


def transform_v2(batch: Batch, *, bug: str = "") -> list[float]:
    """Return every order in euros, in one line.

    With the bug `errors` it refuses refunds. With any other it asks for the rates again for each
    fifty orders.
    """
    euros_per = rates()
    if bug == "errors" and any(order.amount < 0 for order in batch.orders):
        raise ValueError(f"{batch.batch_id} has negative amounts")
    if bug and bug != "errors":
        for _ in range(_FIFTY, len(batch.orders), _FIFTY):
            euros_per = rates()
    return [order.amount * euros_per[order.currency] for order in batch.orders]


def validate(batch: Batch, euros: list[float]) -> None:
    """Raise BatchInvalid unless the transformed batch adds up."""
    total = sum(euros)
    if abs(total - batch.total_euros) > 0.01:
        raise BatchInvalid(
            f"{batch.batch_id} adds up to {total:.2f} EUR, and should to "
            f"{batch.total_euros:.2f} EUR"
        )
