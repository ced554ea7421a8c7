"""How a transaction is named, and what its id says about its age (R13, R14)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple
from uuid import UUID

DAY_MS = 86_400_000
"""Clocks may differ by this much: ids further ahead are refused, and expiry comes this much before the purge (R14)."""


class TransactionKey(NamedTuple):
    """A transaction's whole name. Keys are ordered, so that batches lock their rows in one order (R7)."""

    coordinator: str
    transaction_id: UUID

    def __str__(self) -> str:
        return f"{self.coordinator}/{self.transaction_id}"

    def row(self) -> dict[str, str]:
        """As a row of `runtime.records`."""
        return {"coordinator": self.coordinator, "transaction_id": str(self.transaction_id)}


class Age(Enum):
    """What an id's own time says, seen from a database's `now()`."""

    FINE = "fine"
    EXPIRED = "expired"
    AHEAD = "ahead"


def id_time_ms(transaction_id: UUID) -> int:
    """The time inside a UUIDv7, in ms since 1970."""
    return transaction_id.int >> 80


def age(transaction_id: UUID, *, now_ms: int, retention_ms: int) -> Age:
    """Whether an id is too old for a new row (older than retention − 1 day) or more than a day ahead (R14).

    now_ms: a database's `now()`, never the process's clock.
    """
    time_ms = id_time_ms(transaction_id)
    if time_ms < now_ms - (retention_ms - DAY_MS):
        return Age.EXPIRED
    return Age.AHEAD if time_ms > now_ms + DAY_MS else Age.FINE
