"""Migrations of a database that others use meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from tandem.participant.tables import MIGRATIONS
from tandem.runtime import migrations
from tandem.runtime.database import create_engine
from tandem.runtime.errors import DatabaseError, Reason
from tests.support.rules import another_session

TABLE = "twophase.prepared_transaction"


def test_a_table_that_somebody_holds(new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """R16: it does not wait for ever, with everybody else behind it: it says so, has changed nothing, and may be run
    again. Readers and writers are in nobody's way."""
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT_MS", 200)
    engine = create_engine(new_database("migrations"), pool_size=2)
    MIGRATIONS.upgrade(engine, "p002")
    target = "SELECT attstattarget FROM pg_attribute WHERE attrelid = :table ::regclass AND attname = 'state'"

    def wanted() -> object:
        with engine.connect() as connection:
            return connection.execute(sa.text(target), {"table": TABLE}).scalar_one()

    before = wanted()
    with (
        another_session(engine, f"LOCK TABLE {TABLE} IN SHARE UPDATE EXCLUSIVE MODE"),
        pytest.raises(DatabaseError, match="another session uses the tables") as caught,
    ):
        MIGRATIONS.upgrade(engine)
    assert caught.value.reason is Reason.IN_PROGRESS
    assert (MIGRATIONS.revision(engine), wanted()) == ("p002", before)

    with another_session(engine, f"LOCK TABLE {TABLE} IN ROW EXCLUSIVE MODE"):
        MIGRATIONS.upgrade(engine)
    assert (MIGRATIONS.revision(engine), wanted()) == (MIGRATIONS.head, 0)
    engine.dispose()
