"""The plans of the statements that Prepare and Commit are made of, and how much a server writes ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from uuid_utils.compat import uuid7

from lab.bench.house import people
from tandem.coordinator.handle import packed
from tandem.participant import Participant
from tandem.participant.participant import Ask
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import owned
from tandem.runtime.statements import Statement


@contextmanager
def explained(plans: list[str]) -> Iterator[None]:
    """Has each Statement explained before it is executed, into `plans`."""
    execute = Statement.__call__

    def explain_and_execute(self: Statement, connection: Connection, parameters: Mapping[str, object]) -> list[Any]:
        cursor = connection.connection.cursor()
        cursor.execute("SAVEPOINT explained")
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, WAL) " + self.sql, {**self._constants, **parameters})
        plans.append("\n".join(row[0] for row in cursor.fetchall()))
        cursor.execute("ROLLBACK TO SAVEPOINT explained")
        return execute(self, connection, parameters)

    Statement.__call__ = explain_and_execute  # type: ignore[method-assign]
    try:
        yield
    finally:
        Statement.__call__ = execute  # type: ignore[method-assign]


def of_signups(participant: Participant, count: int) -> list[str]:
    """The plans of Prepare and Commit of so many persons in one batch: four statements."""
    persons = (person for _, _, person in people())
    some = [(TransactionKey("identity", uuid7()), packed({"_": [next(persons)]})["_"]) for _ in range(count)]
    log_id, plans = uuid4(), list[str]()
    with explained(plans):
        participant.prepare([Ask(key, log_id, 60.0, 7.0, writes) for key, writes in some])
        participant.commit([key for key, _ in some], ResolvedBy.COORDINATOR)
    return plans


def written_ahead(engine: Engine) -> int:
    """How many bytes the server has written ahead in its life."""
    with engine.connect() as connection:
        return int(connection.execute(sa.text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")).scalar_one())


def checkpoint(engine: Engine) -> None:
    """Has the server write all pages back."""
    with owned(engine) as connection:
        connection.exec_driver_sql("CHECKPOINT")
