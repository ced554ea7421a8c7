"""How rows are staged: one INSERT a table for a whole batch, then a look at what stood in the way of the rest.

R7: keys are sorted, and what an INSERT skipped is looked up in a later statement. R8: a key of an active row is a
refusal; one of another transaction's prepared row means that nobody can know yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine import Connection

from profiles_server import tables as t
from profiles_server.mapping import Facts
from tandem.participant.resource import HeldBy, Refused
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.records import KEY_COLUMNS, Columns, arrays, records
from tandem.runtime.statements import Statement

MAX_PEOPLE = 1_000
"""Of one business: it is read and shown with all of them, so they must fit one message (R16)."""

_QUOTA = f"has {MAX_PEOPLE} people, which is the most that a business may have"

Obstacle = Refused | HeldBy

_NOT_STAGED = {"state", "version", "created_at", "updated_at"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A row that a transaction wants.

    write: the position of its write, for the answer. with_business: whether the transaction stages the role's business
    itself.
    """

    key: TransactionKey
    write: int
    row: Facts
    with_business: bool = False

    def record(self) -> Facts:
        """As a row of `runtime.records`."""
        return {**self.row, **self.key.row()}


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """What one row at most can have. field: its name in answers."""

    field: str
    table: sa.Table
    columns: Sequence[str]


_IN_BUSINESS = UniqueKey("business_id", t.business, ["business_id"])
"""Asked for a role: its business, which must be there."""

_UNIQUE: dict[sa.Table, Sequence[UniqueKey]] = {
    t.person: [UniqueKey("person_id", t.person, ["person_id"])],
    t.business: [
        UniqueKey("business_id", t.business, ["business_id"]),
        UniqueKey("registration_number", t.business, ["registration_country", "registration_number"]),
    ],
    t.business_person: [UniqueKey("role", t.business_person, ["business_id", "person_id", "role"])],
}


def insert_prepared(connection: Connection, table: sa.Table, asked: Sequence[Asked]) -> list[Asked]:
    """Inserts the rows as prepared; returns those that something stands in the way of."""
    if not asked:
        return []
    rows = _INSERTS[table](connection, arrays("asked", _STAGED[table], [one.record() for one in asked]))
    if len(rows) == len(asked):
        return []
    staged = set(map(tuple, rows))
    return [one for one in asked if _identity(table, one) not in staged]


def obstacles(
    connection: Connection, table: sa.Table, missing: Sequence[Asked], *, never_tried: Sequence[Asked] = ()
) -> list[tuple[TransactionKey, Obstacle]]:
    """What stands in the way of the missing rows, in one statement after the INSERT's.

    Each of `missing` gets at least one answer; a holder that has gone meanwhile is IN_PROGRESS. `never_tried` are
    answered only where something holds them.
    """
    rows = [*missing, *never_tried]
    if not rows:
        return []
    found: list[tuple[TransactionKey, Obstacle]] = []
    met: set[int] = set()  # rows with an obstacle
    with_business = {n for n, one in enumerate(rows) if one.with_business}  # roles that don't lack one
    sought = [{"n": n, **one.record()} for n, one in enumerate(rows)]
    for holder in connection.execute(_HOLDERS[table], arrays("asked", _SOUGHT[table], sought)):
        one = rows[holder.n]
        key = TransactionKey(holder.coordinator, holder.transaction_id)
        if holder.of_role_business:
            with_business.add(holder.n)
            if holder.state == t.ACTIVE:
                continue
        if holder.state == t.ACTIVE:
            found.append((one.key, Refused(_exists(holder.field, one))))
        elif key != one.key:
            found.append((one.key, HeldBy(key)))
        else:
            continue
        met.add(holder.n)
    for n, one in enumerate(missing):
        if n not in met:
            gone = table is not t.business_person or n in with_business
            found.append((one.key, Refused(_in_progress() if gone else _no_business(one))))
    return found


def lock_businesses(connection: Connection, roles: Sequence[Asked]) -> None:
    """Has those that add people to one business take turns until they commit, so that its places are counted once."""
    ids = sorted({str(one.row["business_id"]) for one in roles if not one.with_business})
    if ids:
        connection.execute(_LOCK, {"ids": ids})


def over_quota(connection: Connection, roles: Sequence[Asked]) -> list[tuple[TransactionKey, Obstacle]]:
    """What stands in the way of staged roles whose business, which was there before, has no place for them (R6).

    Active people: a refusal. People who are only prepared, a neighbour's in this batch included: nobody can know yet.
    """
    adding: dict[str, dict[TransactionKey, list[Asked]]] = {}
    for one in roles:
        if not one.with_business:
            adding.setdefault(str(one.row["business_id"]), {}).setdefault(one.key, []).append(one)
    if not adding:
        return []
    full = [str(id_) for id_ in connection.execute(_FULL, {"ids": sorted(adding)}).scalars()]
    taken: dict[str, int] = dict.fromkeys(full, 0)
    reserved: dict[str, list[TransactionKey]] = {id_: [] for id_ in full}
    for row in connection.execute(_PLACES, {"ids": full}) if full else ():
        id_, key = str(row.business_id), TransactionKey(row.coordinator, row.transaction_id)
        if row.state == t.ACTIVE:
            taken[id_] += row.n
        elif key not in adding[id_]:
            reserved[id_] += [key] * row.n
    found: list[tuple[TransactionKey, Obstacle]] = []
    for id_ in full:
        for key, mine in sorted(adding[id_].items()):
            if taken[id_] + len(mine) > MAX_PEOPLE:
                field = f"writes[{mine[0].write}].business_id"
                found.append((key, Refused(InvalidRequest([Violation(field, _QUOTA, "business.people")]))))
            elif taken[id_] + len(reserved[id_]) + len(mine) > MAX_PEOPLE:
                found.append((key, HeldBy(reserved[id_][0])))
            else:
                reserved[id_] += [key] * len(mine)
    return found


# --- statements -----------------------------------------------------------------------------------------------


def _insert(table: sa.Table) -> Statement:
    asked = records("asked", _STAGED[table])
    names = list(_STAGED[table])
    source: sa.FromClause = asked
    if table is t.business_person:
        # R8. That the business is still there at the end is the foreign key's work, and an active one stays.
        own = sa.and_(*(t.business.c[name] == asked.c[name] for name in KEY_COLUMNS))
        source = asked.join(
            t.business,
            sa.and_(t.business.c.business_id == asked.c.business_id, sa.or_(t.business.c.state == t.ACTIVE, own)),
        )
    keys = [column.name for column in table.primary_key.columns]
    chosen = (
        sa.select(*(asked.c[name] for name in names), sa.literal(t.PREPARED))
        .select_from(source)
        .order_by(*(asked.c[name] for name in (*keys, *KEY_COLUMNS)))
    )
    inserted = (
        insert(table)
        .from_select([*names, "state"], chosen)
        .on_conflict_do_nothing()
        .returning(*(sa.cast(table.c[name], sa.Text) for name in (*keys, *KEY_COLUMNS)))
    )
    return Statement(inserted, *keys, *KEY_COLUMNS)


def _keys_of(table: sa.Table) -> list[UniqueKey]:
    return [*_UNIQUE[table], *([_IN_BUSINESS] if table is t.business_person else [])]


def _holders(table: sa.Table) -> sa.Executable:
    asked = records("asked", _SOUGHT[table])
    return sa.union_all(
        *(
            sa.select(
                asked.c.n,
                sa.literal(key.field).label("field"),
                sa.literal(key is _IN_BUSINESS).label("of_role_business"),
                key.table.c.state,
                key.table.c.coordinator,
                key.table.c.transaction_id,
            ).join_from(asked, key.table, sa.and_(*(key.table.c[name] == asked.c[name] for name in key.columns)))
            for key in _keys_of(table)
        )
    )


_IDS = sa.bindparam("ids", type_=ARRAY(sa.UUID))
_ROLE = t.business_person.c
_FULL = (
    sa.select(_ROLE.business_id)
    .where(_ROLE.business_id == sa.func.any(_IDS))
    .group_by(_ROLE.business_id)
    .having(sa.func.count() > MAX_PEOPLE)
)
_PLACES = (
    sa.select(_ROLE.business_id, _ROLE.state, _ROLE.coordinator, _ROLE.transaction_id, sa.func.count().label("n"))
    .where(_ROLE.business_id == sa.func.any(_IDS))
    .group_by(_ROLE.business_id, _ROLE.state, _ROLE.coordinator, _ROLE.transaction_id)
)
_LOCK = (
    sa.select(t.business.c.business_id)
    .where(t.business.c.business_id == sa.func.any(_IDS))
    .order_by(t.business.c.business_id)
    .with_for_update(key_share=True)
)
_STAGED: dict[sa.Table, Columns] = {
    table: {column.name: column.type for column in table.c if column.name not in _NOT_STAGED} for table in _UNIQUE
}
_SOUGHT: dict[sa.Table, Columns] = {
    table: {"n": sa.Integer(), **{name: key.table.c[name].type for key in _keys_of(table) for name in key.columns}}
    for table in _UNIQUE
}
_INSERTS = {table: _insert(table) for table in _UNIQUE}
_HOLDERS = {table: _holders(table) for table in _UNIQUE}


def _identity(table: sa.Table, one: Asked) -> tuple[str, ...]:
    keys = [str(one.row[column.name]) for column in table.primary_key.columns]
    return (*keys, one.key.coordinator, str(one.key.transaction_id))


# --- answers --------------------------------------------------------------------------------------------------


def _exists(field: str, asked: Asked) -> TandemError:
    return TandemError(
        f"there is an active entity with this {field} already",
        reason=Reason.ALREADY_EXISTS,
        violations=[Violation(f"writes[{asked.write}].{field}", "is that of an active entity", "unique")],
        metadata={"field": field, "write": str(asked.write)},
    )


def _no_business(asked: Asked) -> TandemError:
    return TandemError(
        "there is no business with this business_id for the role to be in",
        reason=Reason.REFUSED,
        metadata={"field": "business_id", "write": str(asked.write)},
    )


def _in_progress() -> TandemError:
    return TandemError("what stood in the way has just gone: ask again", reason=Reason.IN_PROGRESS, retry_after_s=0.1)
