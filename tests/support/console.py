"""The console over a house of the tests, and what is looked at there: transactions that are really stuck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from coordinator.console.facts import Sources
from coordinator.console.remote import Operations
from coordinator.console.serving import serve_console
from tandem.coordinator.tables import decision
from tests.support.house import COORDINATOR, House, entry, fresh_name, own

SECRET = "ada-lovelace"
"""Stands for what is personal in a write: no page and no command shows it."""


def sources_of(house: House) -> Sources:
    """Where the console reads. Nobody takes its orders."""
    return Sources(COORDINATOR, house.coordinator.log, house.coordinator.participants)


@contextmanager
def ordering(house: House, tokens: Mapping[str, str]) -> Iterator[Sources]:
    """The same with the tokens of those that do."""
    targets = {name: f"127.0.0.1:{member.server.port}" for name, member in house.members.items()}
    operations = Operations(targets, tokens)
    try:
        yield Sources(COORDINATOR, house.coordinator.log, house.coordinator.participants, operations)
    finally:
        operations.close()


@contextmanager
def served(house: House, *, token: str | None = None) -> Iterator[str]:
    """The console as a process serves it: its address."""
    with ExitStack() as stack:
        yield serve_console("127.0.0.1:0", token, sources_of(house), stack)


def in_doubt(house: House, *, age_s: float = 0.0, participants: tuple[str, ...] = ("ledger",)) -> Any:
    """A transaction in doubt, prepared so long ago."""
    tx = house.coordinator.prepare({name: [entry(fresh_name(SECRET))] for name in participants})
    for name in participants:
        house.members[name].set(tx.id, prepared_at=sa.func.now() - timedelta(seconds=age_s))
    return tx


def decide(house: House, tx: Any) -> None:
    """The initiator's local commit, after which it dies."""
    with house.engine.begin() as connection:
        connection.execute(sa.insert(own).values(id=tx.id))
        connection.execute(tx.decision)


def undelivered(house: House) -> Any:
    """A committed transaction whose initiator died before Commit."""
    tx = in_doubt(house)
    decide(house, tx)
    with house.engine.begin() as connection:  # as if recovery's first second had passed
        mine = decision.c.transaction_id == tx.id
        connection.execute(sa.update(decision).where(mine).values(next_attempt_at=sa.func.now()))
    return tx


def parked(house: House, reason: str = "TRANSACTION_UNKNOWN") -> Any:
    """A committed transaction whose delivery waits for a person."""
    tx = undelivered(house)
    house.coordinator.log.park("ledger", {tx.key: reason})
    return tx
