"""Both databases after quiet, read by SQL; nothing of the product is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from lab.checks import NAMESPACE_IDENTITY, NAMESPACE_IDENTITY_BUSINESS, Databases, uuid5
from lab.torture.content import BUSINESS_COLUMNS, PERSON_COLUMNS


@dataclass(frozen=True)
class Entity:
    """A row of profiles. content: the columns that clients set; version 0: a role, which has none."""

    state: str
    transaction_id: UUID
    version: int = 0
    content: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Invitation:
    """A row of identity's."""

    business_id: UUID
    email: str
    role: str
    accepted_by: UUID | None


@dataclass(frozen=True)
class Standing:
    """What an account says of its profile: active, pending, absent or rejected, and why it is no better."""

    status: str
    reason: str = ""


@dataclass(frozen=True)
class Taken:
    """A row of profiles' inbox: an event of a saga that was taken up, and what came of it."""

    event_id: UUID
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Request:
    """What identity wrote down in the local transaction that decided: its own rows of a transaction."""

    kind: str
    user_id: UUID | None
    business_id: UUID | None


@dataclass(frozen=True)
class Decision:
    """A row of the decision log."""

    outcome: str
    decided_at: datetime
    undelivered: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = f", undelivered {self.undelivered}, parked {self.parked}" if self.undelivered or self.parked else ""
        return f"{self.outcome} at {self.decided_at}{left}"


@dataclass(frozen=True)
class Prepared:
    """A row of the participant's. voted: it was asked to prepare, rather than told of an abort before that."""

    state: str
    confirmed: bool
    staged: int
    prepared_at: datetime
    resolved_at: datetime | None
    resolved_by: str
    parked: str = ""
    voted: bool = True

    def __str__(self) -> str:
        parked = f", parked {self.parked}" if self.parked else ""
        return (
            f"{self.state}, {self.staged} staged, prepared at {self.prepared_at}, resolved at {self.resolved_at} "
            f"by {self.resolved_by or 'nobody'}{'' if self.confirmed else ', not confirmed'}{parked}"
        )


Role = tuple[UUID, UUID, str]
"""Business, person or user, role."""


@dataclass
class State:
    """Both databases. users: id → e-mail address; requests, decisions and prepared: by transaction.

    accounts: id of a user or business → what it says of its profile. created: (kind, id) → how often profiles says to
    have created it. waiting: side → messages in its outbox. letters: dead-letter topic → messages in it, which is all
    that is not read by SQL.
    """

    users: dict[UUID, str] = field(default_factory=dict)
    businesses: set[UUID] = field(default_factory=set)
    members: set[Role] = field(default_factory=set)
    invitations: dict[UUID, Invitation] = field(default_factory=dict)
    requests: dict[UUID, Request] = field(default_factory=dict)
    persons: dict[UUID, Entity] = field(default_factory=dict)
    entities: dict[UUID, Entity] = field(default_factory=dict)
    roles: dict[Role, Entity] = field(default_factory=dict)
    decisions: dict[UUID, Decision] = field(default_factory=dict)
    prepared: dict[UUID, Prepared] = field(default_factory=dict)
    accounts: dict[UUID, Standing] = field(default_factory=dict)
    created: Counter[tuple[str, str]] = field(default_factory=Counter)
    taken: list[Taken] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    letters: dict[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, set[Any]]:
        """Persons, businesses and roles that are on one side only, by their ids in profiles."""
        persons = {person_of(user_id) for user_id in self.users}
        entities = {entity_of(business_id) for business_id in self.businesses}
        roles = {(entity_of(business), person_of(user), role) for business, user, role in self.members}
        return {
            "person": persons ^ _active(self.persons),
            "business": entities ^ _active(self.entities),
            "role": roles ^ _active(self.roles),
        }

    @property
    def orphans(self) -> int:
        """How many are on one side only."""
        return sum(map(len, self.splits.values()))


def person_of(user_id: UUID | str) -> UUID:
    """The person of a user, by the documented rule."""
    return uuid5(NAMESPACE_IDENTITY, str(user_id))


def entity_of(business_id: UUID | str) -> UUID:
    """The business in profiles of a business of identity's."""
    return uuid5(NAMESPACE_IDENTITY_BUSINESS, str(business_id))


def read(databases: Databases) -> State:
    """What both databases hold now."""

    def identity(sql: str) -> list[tuple[Any, ...]]:
        return databases.rows("identity", sql)

    def profiles(sql: str) -> list[tuple[Any, ...]]:
        return databases.rows("profiles", sql)

    def entities(table: str, columns: tuple[str, ...]) -> dict[UUID, Entity]:
        names = [column.partition("::")[0] for column in columns]
        rows = profiles(
            f"SELECT {table}_id, state, transaction_id, version, {', '.join(columns)} FROM profiles.{table}"
        )
        return {row[0]: Entity(row[1], row[2], row[3], dict(zip(names, row[4:], strict=True))) for row in rows}

    return State(
        users=dict(identity("SELECT user_id, email FROM identity.users")),
        businesses={row[0] for row in identity("SELECT business_id FROM identity.businesses")},
        members=set(identity("SELECT business_id, user_id, role FROM identity.members")),
        invitations={
            row[0]: Invitation(*row[1:])
            for row in identity("SELECT invitation_id, business_id, email, role, accepted_by FROM identity.invitations")
        },
        requests={
            row[0]: Request(*row[1:])
            for row in identity(
                "SELECT transaction_id, kind, user_id, business_id FROM identity.requests"
                " WHERE transaction_id IS NOT NULL"
            )
        },
        persons=entities("person", PERSON_COLUMNS),
        entities=entities("business", BUSINESS_COLUMNS),
        roles={
            row[:3]: Entity(row[3], row[4])
            for row in profiles(
                "SELECT business_id, person_id, role, state, transaction_id FROM profiles.business_person"
            )
        },
        decisions={
            row[0]: Decision(row[1], row[2], tuple(row[3]), tuple(row[4]))
            for row in identity(
                "SELECT transaction_id, outcome, decided_at, undelivered, parked FROM twophase.decision"
            )
        },
        prepared={
            row[0]: Prepared(row[1], row[2], row[3], row[4], row[5], row[6] or "", row[7] or "", row[8])
            for row in profiles(
                "SELECT transaction_id, state, confirmed, coalesce(staged, 0), prepared_at, resolved_at, resolved_by,"
                " parked, log_id IS NOT NULL FROM twophase.prepared_transaction"
            )
        },
        accounts={
            row[0]: Standing(row[1], row[2])
            for table, key in (("users", "user_id"), ("businesses", "business_id"))
            for row in identity(f"SELECT {key}, profile_status, coalesce(profile_reason, '') FROM identity.{table}")
        },
        created=Counter(
            {
                (row[0], row[1]): row[2]
                for row in profiles(
                    "SELECT entity_kind, entity_id, count(*) FROM profiles.audit_event WHERE action = 'created'"
                    " GROUP BY entity_kind, entity_id"
                )
            }
        ),
        taken=[
            Taken(row[0], row[1] or "", row[2] or "")
            for row in profiles("SELECT event_id, outcome, reason FROM profiles.inbox")
        ],
        waiting={
            side: databases.number(side, f"SELECT count(*) FROM {side}.outbox") for side in ("identity", "profiles")
        },
    )


def _active(rows: Mapping[Any, Entity]) -> set[Any]:
    return {id_ for id_, row in rows.items() if row.state == "active"}
