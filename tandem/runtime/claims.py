"""How background workers share due rows: any number of replicas, one bad row never blocks the others (R11).

A claim is one UPDATE that takes due rows (SKIP LOCKED) and moves their `next_attempt_at` by a short lease. Back-off is
per peer, not per row: a failing peer gets one probe a second, and its first success makes all its rows due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from tandem.runtime.database import ASIDE, seconds
from tandem.runtime.local_transaction import local_transaction

PROBE_EVERY_S = 0.95
"""A second (R11), less what a timer of one may be early: it would let every other one pass."""


def claim(
    engine: Engine,
    table: sa.Table,
    *,
    due: Sequence[sa.ColumnElement[bool]],
    limit: int,
    lease_s: float,
    probe: bool = False,
) -> Sequence[Row[Any]]:
    """Takes up to `limit` rows whose `next_attempt_at` has come and which fit `due`; returns them whole.

    lease_s: for how long no other worker takes them; a worker that dies loses them after it.
    probe: takes rows too whose lease still runs. The attempt that failed left all of a failing peer's rows with one,
    and the peer is to be probed every second all the same; what two workers do at once is done once.
    """
    key = tuple(table.primary_key.columns)
    now = sa.func.now()
    has_come = [table.c.next_attempt_at <= now]
    if probe:
        has_come = [table.c.next_attempt_at <= now + seconds(lease_s), sa.or_(table.c.attempts > 0, *has_come)]
    # A CTE with FOR UPDATE is evaluated once: a plain IN (… LIMIT n) may be planned to run again for each row.
    taken = (
        sa.select(*key)
        .where(*has_come, *due)
        .order_by(table.c.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("taken")
    )
    statement = (
        sa.update(table)
        .where(*(column == taken.c[column.name] for column in key))
        .values(next_attempt_at=now + seconds(lease_s), attempts=table.c.attempts + 1)
        .returning(*table.columns)
    )
    with local_transaction(engine, ASIDE) as connection:
        return connection.execute(statement).all()


def make_due(engine: Engine, table: sa.Table, *, waiting: Sequence[sa.ColumnElement[bool]], lease_s: float) -> None:
    """A peer that answers again: what waited for it is due now. What another worker has in hand is left to it.

    waiting: which rows wait for the peer. lease_s: that of their claims.
    """
    key, now = tuple(table.primary_key.columns), sa.func.now()
    free = (
        sa.select(*key)
        .where(table.c.attempts > 0, table.c.next_attempt_at.between(now, now + seconds(lease_s)), *waiting)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    statement = sa.update(table).where(*(column == free.c[column.name] for column in key)).values(next_attempt_at=now)
    with local_transaction(engine, ASIDE) as connection:
        connection.execute(statement)


class Peers:
    """Which peers answer. Thread-safe; kept by each worker for itself, since a probe a second costs nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failing: dict[str, float] = {}
        self._lock = threading.Lock()

    def failing(self) -> list[str]:
        """The peers whose last call failed."""
        with self._lock:
            return sorted(self._failing)

    def due_probes(self) -> list[str]:
        """The failing peers that may be tried again now: each at most once in PROBE_EVERY_S."""
        now = self._clock()
        with self._lock:
            due = sorted(peer for peer, at in self._failing.items() if at <= now)
            for peer in due:
                self._failing[peer] = now + PROBE_EVERY_S
            return due

    def failed(self, peer: str) -> None:
        """A call to the peer failed."""
        with self._lock:
            self._failing.setdefault(peer, self._clock() + PROBE_EVERY_S)

    def answered(self, peer: str) -> bool:
        """A call to the peer succeeded; True if it had failed before: its rows should be made due."""
        with self._lock:
            return self._failing.pop(peer, None) is not None
