"""Whether a process can do its work now: its database answers, and is the primary (R15).

Asked now and then on a connection of its own, so that a pool that is used up does not look like a dead database. The
other processes are not asked: each says for itself whether it is ready, and one that is away takes no other with it.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from tandem.runtime.database import Limits, create_engine, explained
from tandem.runtime.errors import DatabaseError, Reason
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("tandem.readiness")

EVERY_S = 1.0
"""From one question to the next."""

CONNECT_S = 2
"""For a new connection."""

PROBE = Limits(lock_timeout_ms=500, statement_timeout_ms=1_500, idle_timeout_ms=1_500, durable=False, give_up_ms=2_000)
"""A server that says nothing at all is given up by the watchdog (R16)."""

FAILURES = 2
"""In a row, until it counts: a machine that is busy for a moment must not take every replica out at once."""

_WRITABLE = sa.text("SELECT current_setting('transaction_read_only') = 'off'")


class Readiness:
    """`run_once()` asks the database and tells `serving` what came of it.

    url: the database's. name: what the database shows of its one connection. serving: told each time whether the
    process is ready.
    """

    def __init__(self, url: str, name: str, serving: Callable[[bool], object]) -> None:
        self._engine = create_engine(url, pool_size=1, connect_timeout_s=CONNECT_S, name=name)
        self._serving = serving
        self._failed = 0

    def run_once(self) -> int:
        """One question: how many in a row have failed, 0 when the process is ready. Never raises."""
        try:
            self._ask()
        except Exception as error:  # whatever it is: the process can't do its work
            self._failed += 1
            if self._failed == FAILURES:
                told = explained(error)
                log.error("not ready", reason=told.reason.value, why=told.message)
        else:
            if self._failed >= FAILURES:
                log.info("ready again", failures=self._failed)
            self._failed = 0
        self._serving(self._failed < FAILURES)
        return self._failed

    def close(self) -> None:
        """Closes its connection."""
        self._engine.dispose()

    def _ask(self) -> None:
        """Raises what a local transaction of the process would: it can't be reached, is silent, full, or a replica."""
        with local_transaction(self._engine, PROBE) as connection:
            if not connection.execute(_WRITABLE).scalar_one():
                raise DatabaseError("the database takes no writes", reason=Reason.DATABASE_UNAVAILABLE)
