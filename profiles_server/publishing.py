"""How staged rows end: published, each with an audit event, or discarded. One statement for a whole batch either way.

Nothing here can fail for what the rows hold (R6): no key changes, no value is checked again. Only prepared rows of the
transactions asked for are touched, and the participant has locked those transactions' own rows first (R7), so no other
Commit or Abort is at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from profiles_server import tables as t
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.records import KEY_COLUMNS, key_arrays, records
from tandem.runtime.statements import Statement

_TABLES = (t.person, t.business, t.business_person)


def publish(connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
    """Makes the prepared rows of these transactions active; how many there were of each."""
    return _run(connection, _PUBLISH, keys)


def discard(connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
    """Deletes the prepared rows of these transactions; how many there were of each."""
    return _run(connection, _DISCARD, keys)


def entity_id(table: sa.Table) -> sa.ColumnElement[str]:
    """An entity's name in the audit: its id; a role's is business/person/role."""
    return sa.func.concat_ws("/", *table.primary_key.columns).cast(sa.Text)


def _publish() -> sa.ClauseElement:
    keys = sa.select(records("keys", KEY_COLUMNS)).cte("keys")
    published = sa.union_all(
        *(
            sa.select(
                sa.update(table)
                .where(*_prepared(table, keys))
                .values(state=t.ACTIVE, updated_at=sa.func.now())
                .returning(
                    table.c.coordinator,
                    table.c.transaction_id,
                    sa.literal(table.name).label("kind"),
                    entity_id(table).label("entity_id"),
                    (table.c.version if "version" in table.c else sa.null().cast(sa.BigInteger)).label("version"),
                )
                .cte(f"{table.name}_published")
            )
            for table in _TABLES
        )
    ).cte("published")
    events = sa.insert(t.audit_event).from_select(
        ["actor", "action", "entity_kind", "entity_id", "version", "coordinator", "transaction_id"],
        sa.select(
            sa.literal("coordinator:").concat(published.c.coordinator),
            sa.literal("created"),
            published.c.kind,
            published.c.entity_id,
            published.c.version,
            published.c.coordinator,
            published.c.transaction_id,
        ),
    )
    return _counts(published).add_cte(events.cte("events"))


def _discard() -> sa.ClauseElement:
    keys = sa.select(records("keys", KEY_COLUMNS)).cte("keys")
    discarded = sa.union_all(
        *(
            sa.select(
                sa.delete(table)
                .where(*_prepared(table, keys))
                .returning(table.c.coordinator, table.c.transaction_id)
                .cte(f"{table.name}_discarded")
            )
            # The foreign key is checked at the end of the statement: the order doesn't matter.
            for table in _TABLES
        )
    ).cte("discarded")
    return _counts(discarded)


def _prepared(table: sa.Table, keys: sa.CTE) -> list[sa.ColumnElement[bool]]:
    # The partial index on (coordinator, transaction_id) needs the state as a literal.
    return [*(table.c[name] == keys.c[name] for name in KEY_COLUMNS), table.c.state == sa.text(f"'{t.PREPARED}'")]


def _counts(ended: sa.CTE) -> sa.Select[tuple[str, object, int]]:
    return sa.select(ended.c.coordinator, ended.c.transaction_id, sa.func.count().label("n")).group_by(
        ended.c.coordinator, ended.c.transaction_id
    )


_PUBLISH = Statement(_publish(), *KEY_COLUMNS, "n")
_DISCARD = Statement(_discard(), *KEY_COLUMNS, "n")


def _run(connection: Connection, statement: Statement, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
    if not keys:
        return {}
    rows = statement(connection, key_arrays("keys", sorted(keys)))
    return {TransactionKey(row.coordinator, row.transaction_id): row.n for row in rows}
