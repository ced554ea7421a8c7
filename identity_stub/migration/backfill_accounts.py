"""The accounts that a backfill works on: which there are, what they say, and how they are marked. Statements only.

A status is one of the tables': 'absent' for accounts from before there were profiles, 'rejected' for those that were
refused. Every change is guarded by the status that was read, so that two backfills can't both make one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection, Engine

from identity_stub import tables as t
from identity_stub.migration import mapping
from identity_stub.migration.mapping import Refusal
from identity_stub.users import ACTIVE, REJECTED
from tandem.profiles import ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.database import Limits
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.records import Columns, array, arrays, records
from tandem.runtime.statements import Statement

PAGE = 5_000
"""Ids that are read ahead, or refused accounts that are listed, at once."""

READING = Limits(statement_timeout_ms=60_000, durable=False)
"""A count of a hundred million takes its time; nobody waits for it."""

Profile = person_pb2.Person | business_pb2.Business


@dataclass(frozen=True, slots=True)
class Kind:
    """Users or businesses. profile_id: the name of an account's profile. with_people: whether members belong to it."""

    name: str
    table: sa.Table
    facts: Sequence[str]
    profile_id: Callable[[UUID], UUID]
    with_people: bool = False

    @property
    def key(self) -> sa.Column[UUID]:
        """The account's id."""
        (key,) = self.table.primary_key.columns
        return key

    @property
    def old(self) -> list[sa.Column[str]]:
        """What the account said before there were profiles."""
        return [self.table.c[f"old_{fact}"] for fact in self.facts]


USERS = Kind("users", t.users, t.OLD_USER_FACTS, ids.person_id)
BUSINESSES = Kind("businesses", t.businesses, t.OLD_BUSINESS_FACTS, ids.business_id, with_people=True)
KINDS = {kind.name: kind for kind in (USERS, BUSINESSES)}


@dataclass(frozen=True, slots=True)
class Shard:
    """The i-th of n equal parts of all ids, i from 1. Accounts' ids are random, so the parts have equally many."""

    i: int = 1
    n: int = 1

    def among(self, key: sa.Column[UUID]) -> sa.ColumnElement[bool]:
        """Whether an id is in it."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if self.i > 1:
            conditions.append(key >= self._bound(self.i - 1))
        if self.i < self.n:
            conditions.append(key < self._bound(self.i))
        return sa.and_(*conditions)

    def _bound(self, parts: int) -> UUID:
        return UUID(int=(parts << 128) // self.n)


WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Account:
    """One account and what its old columns say."""

    id: UUID
    profile: Profile | Refusal


# --- reading --------------------------------------------------------------------------------------------------


def count(engine: Engine, kind: Kind, status: str, shard: Shard) -> int:
    """How many accounts have this status."""
    statement = sa.select(sa.func.count()).where(kind.table.c.profile_status == status, shard.among(kind.key))
    with local_transaction(engine, READING) as connection:
        return int(connection.execute(statement).scalar_one())


def pages(engine: Engine, kind: Kind, status: str, shard: Shard) -> Iterator[list[UUID]]:
    """The ids of all accounts with this status in their order, PAGE at a time, with no local transaction in between."""
    statement = (
        sa.select(kind.key)
        .where(kind.table.c.profile_status == status, shard.among(kind.key))
        .order_by(kind.key)
        .limit(PAGE)
    )
    after: UUID | None = None
    while True:
        with local_transaction(engine, READING) as connection:
            following = statement if after is None else statement.where(kind.key > after)
            page = list(connection.execute(following).scalars())
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1]


def read(engine: Engine, kind: Kind, status: str, some: Sequence[UUID]) -> list[Account]:
    """Those of the accounts that have this status still, with what they say, in the order of their ids."""
    with local_transaction(engine, READING) as connection:
        rows = _READ[kind.name](connection, {"ids": array(some), "status": status})
        people = people_of(connection, [row[0] for row in rows]) if kind.with_people and rows else {}
    return [Account(row[0], _profile(kind, row, people)) for row in rows]


def _profile(kind: Kind, row: Any, people: Mapping[UUID, Sequence[tuple[UUID, str]]]) -> Profile | Refusal:
    if kind.with_people:
        return mapping.business_of(row, people.get(row[0], ()))
    return mapping.person_of(row)


def people_of(connection: Connection, businesses: Sequence[UUID]) -> Mapping[UUID, Sequence[tuple[UUID, str]]]:
    """(user_id, role) of the members of each business."""
    m = t.members.c
    people: dict[UUID, list[tuple[UUID, str]]] = defaultdict(list)
    for row in connection.execute(
        sa.select(m.business_id, m.user_id, m.role).where(m.business_id == sa.func.any(_IDS)),
        {"ids": array(businesses)},
    ):
        people[row.business_id].append((row.user_id, row.role))
    return people


def refused(engine: Engine, kind: Kind, shard: Shard) -> Iterator[tuple[UUID, str]]:
    """The refused accounts in their order, each with the reason."""
    for page in pages(engine, kind, REJECTED, shard):
        chosen = sa.select(kind.key, sa.func.coalesce(kind.table.c.profile_reason, "")).where(
            _among(kind), kind.table.c.profile_status == REJECTED
        )
        with local_transaction(engine, READING) as connection:
            rows = connection.execute(chosen.order_by(kind.key), {"ids": array(page)}).all()
        yield from ((id_, reason) for id_, reason in rows)


# --- marking --------------------------------------------------------------------------------------------------


def activate(connection: Connection, kind: Kind, status: str, some: Sequence[UUID]) -> int:
    """Marks the accounts as having their profile; how many had this status still."""
    statement = (
        sa.update(kind.table)
        .where(_among(kind), kind.table.c.profile_status == status)
        .values(profile_status=ACTIVE, profile_reason=None)
    )
    return connection.execute(statement, {"ids": array(some)}).rowcount


_REASONS: Columns = {"id": sa.Uuid(), "reason": sa.Text()}


def reject(connection: Connection, kind: Kind, status: str, reasons: Mapping[UUID, str]) -> int:
    """Marks the accounts as refused, each with the reason; how many had this status still."""
    given = records("given", _REASONS)
    statement = (
        sa.update(kind.table)
        .where(kind.key == given.c.id, kind.table.c.profile_status == status)
        .values(profile_status=REJECTED, profile_reason=given.c.reason)
    )
    rows = [{"id": id_, "reason": reason} for id_, reason in sorted(reasons.items())]
    return connection.execute(statement, arrays("given", _REASONS, rows)).rowcount


# --- statements -----------------------------------------------------------------------------------------------

_IDS = sa.cast(sa.bindparam("ids", type_=sa.Text), ARRAY(sa.Uuid))


def _among(kind: Kind) -> sa.ColumnElement[bool]:
    return kind.key == sa.func.any(_IDS)


def _read(kind: Kind) -> Statement:
    waiting = kind.table.c.profile_status == sa.bindparam("status", type_=sa.Text)
    chosen = sa.select(kind.key, *kind.old).where(_among(kind), waiting).order_by(kind.key)
    return Statement(chosen, *chosen.selected_columns.keys())


_READ = {name: _read(kind) for name, kind in KINDS.items()}
