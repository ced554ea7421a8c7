"""How entities are read: only active rows are shown, and the transactions whose prepared rows were met are named.

R10: whoever meets a prepared row resolves it. That is the caller's work; here it is only told what it met. One
statement a call, so that an answer never shows half a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from profiles_server import tables as t
from profiles_server.mapping import business_of, person_of
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.database import Limits
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction

E = TypeVar("E")

LISTING = Limits(statement_timeout_ms=30_000, durable=False)
"""A page of what one coordinator made may lie among many of others."""


@dataclass(frozen=True, slots=True)
class Found(Generic[E]):
    """What was asked for.

    active: entities by id. prepared: for an id, the transactions whose prepared rows (of the entity or of its
    relations) were met; an id can be in both.
    """

    active: Mapping[UUID, E]
    prepared: Mapping[UUID, frozenset[TransactionKey]]


def persons(engine: Engine, ids: Sequence[UUID]) -> Found[person_pb2.Person]:
    """The persons with these ids, on the primary."""
    with local_transaction(engine) as connection:
        rows = connection.execute(sa.select(t.person).where(t.person.c.person_id.in_(set(ids)))).all()
    return Found(
        active={row.person_id: person_of(row) for row in rows if row.state == t.ACTIVE},
        prepared={
            row.person_id: frozenset([TransactionKey(row.coordinator, row.transaction_id)])
            for row in rows
            if row.state == t.PREPARED
        },
    )


def businesses(engine: Engine, ids: Sequence[UUID]) -> Found[business_pb2.Business]:
    """The businesses with these ids, each with its active people, on the primary."""
    with local_transaction(engine) as connection:
        rows = connection.execute(_BUSINESSES.where(t.business.c.business_id.in_(set(ids)))).all()
    active: dict[UUID, business_pb2.Business] = {}
    prepared: dict[UUID, frozenset[TransactionKey]] = {}
    for row in rows:
        met = {TransactionKey(row.coordinator, row.transaction_id)} if row.state == t.PREPARED else set()
        people: list[tuple[str, str]] = []
        for person_id, role, state, coordinator, transaction_id in row.people or ():
            if state == t.ACTIVE:
                people.append((person_id, role))
            else:
                met.add(TransactionKey(coordinator, UUID(transaction_id)))
        if row.state == t.ACTIVE:
            active[row.business_id] = business_of(row, people)
        if met:
            prepared[row.business_id] = frozenset(met)
    return Found(active, prepared)


def ids(engine: Engine, table: sa.Table, *, coordinator: str, after: UUID | None, size: int) -> list[str]:
    """Up to `size` ids of active persons or businesses after this one, in their order.

    coordinator: only of those that its transactions have made; "" for all.
    """
    with local_transaction(engine, LISTING) as connection:
        return list(connection.execute(listed(table, coordinator, after, size)).scalars())


def listed(table: sa.Table, coordinator: str, after: UUID | None, size: int) -> sa.Select[str]:
    """The statement of it, which reads a page of the key, however many rows there are."""
    (key,) = table.primary_key.columns
    # There are no statistics of the state (f002). Of "=" the planner takes for granted that it leaves one row in two
    # hundred, and reads and sorts the whole table for each page; of "<>", that it leaves nearly all.
    conditions = [table.c.state != t.PREPARED]
    if coordinator:
        conditions.append(table.c.coordinator == coordinator)
    if after is not None:
        conditions.append(key > after)
    return sa.select(sa.cast(key, sa.Text)).where(*conditions).order_by(key).limit(size)


def registration_holder(engine: Engine, country: str, number: str) -> tuple[str, TransactionKey] | None:
    """The state and the transaction of the business that has this registration."""
    statement = sa.select(t.business.c.state, t.business.c.coordinator, t.business.c.transaction_id).where(
        t.business.c.registration_country == country, t.business.c.registration_number == number
    )
    with local_transaction(engine) as connection:
        row = connection.execute(statement).one_or_none()
    return None if row is None else (row.state, TransactionKey(row.coordinator, row.transaction_id))


def _people() -> sa.ScalarSelect[Any]:
    """All roles of a business, prepared ones too, as an array of [person_id, role, state, coordinator, id]."""
    role = t.business_person.c
    one = sa.func.jsonb_build_array(role.person_id, role.role, role.state, role.coordinator, role.transaction_id)
    return sa.select(sa.func.jsonb_agg(one)).where(role.business_id == t.business.c.business_id).scalar_subquery()


_BUSINESSES = sa.select(t.business, _people().label("people"))
