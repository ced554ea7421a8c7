"""Rows as arrays: what goes in comes out, whatever it holds; and the plans that come of it go by the index."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Engine

from lab.bench.plans import of_signups
from profiles_server import reading, tables
from profiles_server.profiles import ProfilesResource
from profiles_server.tables import MIGRATIONS as PROFILES_MIGRATIONS
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.runtime.database import create_engine
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.records import KEY_COLUMNS, arrays, key_arrays, records
from tandem.runtime.statements import Statement
from tandem.runtime.times import Times
from tests.integration.test_gauges import scanned

COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "word": sa.Text(),
    "id": sa.UUID(),
    "number": sa.BigInteger(),
    "share": sa.Double(),
    "document": JSONB(),
}
_given = records("given", COLUMNS)
EVERYTHING = sa.select(*_given.c)
COMPILED = Statement(EVERYTHING, *COLUMNS)
KEYS = records("keys", KEY_COLUMNS)

words = st.one_of(
    st.none(),
    st.sampled_from(
        ["", "NULL", "null", "{}", '{"a"}', "a,b", 'a"b', "a\\b", "\\", '"', "%", "%(word)s", " a ", "é\u2028"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), words.filter(lambda word: word is not None)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text('ab"\\{},', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "word": words,
            "id": st.one_of(st.none(), st.uuids()),
            "number": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            "share": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            "document": documents,
        }
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def engine(new_database: Callable[[str], str]) -> Iterator[Engine]:
    made = create_engine(new_database("records"), pool_size=2)
    for migrations in (PARTICIPANT_MIGRATIONS, PROFILES_MIGRATIONS):
        migrations.upgrade(made)
    yield made
    made.dispose()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(given_rows=rows)
def test_what_goes_in_comes_out(engine: Engine, given_rows: list[dict[str, Any]]) -> None:
    """Every value, NULL and empty ones too, in the order given; no row at all is no row. By both ways of executing."""
    values = arrays("given", COLUMNS, given_rows)
    with local_transaction(engine) as connection:
        by_sqlalchemy = [row._asdict() for row in connection.execute(EVERYTHING, values)]
        compiled = [row._asdict() for row in COMPILED(connection, values)]
    assert by_sqlalchemy == given_rows
    assert [{**row, "document": None} for row in compiled] == [{**row, "document": None} for row in given_rows]


def test_keys(engine: Engine) -> None:
    """Keys of any coordinator's name."""
    keys = [TransactionKey(name, uuid4()) for name in ("identity", 'a "b"', "{c,d}", "e\\")]
    with local_transaction(engine) as connection:
        found = connection.execute(sa.select(*KEYS.c), key_arrays("keys", keys)).all()
    assert [TransactionKey(*row) for row in found] == keys


def test_values_of_their_own(engine: Engine) -> None:
    """Values that come with the statement, not with its execution."""
    ids = [{"id": UUID(int=n)} for n in range(3)]
    columns = {"id": sa.UUID()}
    table = records("mine", columns, arrays("mine", columns, ids))
    with local_transaction(engine) as connection:
        assert [row.id for row in connection.execute(sa.select(table.c.id))] == [one["id"] for one in ids]


def test_a_parameter_that_is_missing(engine: Engine) -> None:
    """Is an error, and not NULL."""
    with pytest.raises(KeyError), local_transaction(engine) as connection:
        COMPILED(connection, {})


# --- plans ------------------------------------------------------------------------------------------------------------

_STORED = """
WITH ids AS MATERIALIZED (SELECT gen_random_uuid() AS id FROM generate_series(1, 30000)),
persons AS (
    INSERT INTO profiles.person (person_id, display_name, coordinator, transaction_id, state)
    SELECT gen_random_uuid(), 'Ada Lovelace', 'identity', id, 'active' FROM ids)
INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, log_id, digests, staged, state, confirmed)
SELECT 'identity', id, id, '', 1, 'committed', true FROM ids
"""
_IN_DOUBT = """
WITH ids AS MATERIALIZED (SELECT gen_random_uuid() AS id FROM generate_series(1, 3000)),
persons AS (
    INSERT INTO profiles.person (person_id, display_name, coordinator, transaction_id, state)
    SELECT gen_random_uuid(), 'Ada Lovelace', 'identity', id, 'prepared' FROM ids)
INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, log_id, digests, staged, state, confirmed,
    next_attempt_at)
SELECT 'identity', id, id, '', 1, 'prepared', false, now() FROM ids
"""


_HIDE = "ALTER FUNCTION pg_clear_attribute_stats(text, text, text, boolean) RENAME TO pg_was_not_there_before_18"


@pytest.mark.parametrize("upgraded", ["", "upgraded", "upgraded before PostgreSQL 18"])
def test_plans_go_by_the_index(new_database: Callable[[str], str], upgraded: str) -> None:
    """A lone Prepare and Commit read their own rows: neither all that is stored, nor all that is in doubt. Many at once
    are not compared with all that is in doubt, one by one. A page of ids is a page of the key.

    upgraded: the rows were there, and had been analysed, before the storage was set. What was sampled of them goes by
    a function that older servers do not have, or by another way.
    """
    engine = create_engine(new_database("plans"), pool_size=2)
    if "before" in upgraded:
        with engine.begin() as connection:
            connection.exec_driver_sql(_HIDE)
    PARTICIPANT_MIGRATIONS.upgrade(engine, "p002" if upgraded else "head")
    PROFILES_MIGRATIONS.upgrade(engine, "f001" if upgraded else "head")
    participant = Participant(
        engine,
        name="profiles",
        resource=ProfilesResource(),
        coordinators=["identity"],
        times=Times(),
        metrics=ParticipantMetrics(CollectorRegistry()),
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(_STORED)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
    PARTICIPANT_MIGRATIONS.upgrade(engine)
    PROFILES_MIGRATIONS.upgrade(engine)
    with engine.connect() as connection:
        sampled = connection.execute(sa.text("SELECT tablename FROM pg_stats WHERE attname = 'state'")).scalars().all()
    assert sampled == []
    with engine.begin() as connection:  # more than the statistics know of: a crash has left them
        connection.exec_driver_sql(_IN_DOUBT)
    plans = of_signups(participant, 1)
    assert len(plans) == 4
    for plan in plans:
        assert not re.search(r"Seq Scan on (prepared_transaction|person)", plan), plan
        read = sum(int(count) for count in re.findall(r"^\s*Buffers: shared hit=(\d+)", plan)[:1])
        assert read < 60, plan
        assert not any(int(removed) > 5 for removed in re.findall(r"Rows Removed by .*: (\d+)", plan)), plan
    for plan in of_signups(participant, 500):
        assert not re.search(r"Rows Removed by Join Filter: \d{4}", plan), plan
    for coordinator, after in (("identity", None), ("identity", UUID(int=1 << 127)), ("", UUID(int=1 << 127))):
        listing = reading.listed(tables.person, coordinator, after, 500)
        assert scanned(engine, listing, tables.person) == [("Index Scan", "person_pkey")]
    engine.dispose()
