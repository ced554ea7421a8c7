"""Users, businesses, members and invitations: the rows as values, and every statement on them.

Each function runs on a connection that the caller owns, and ends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from identity_stub import tables as t
from tandem.runtime.records import Columns, arrays, records

_ASKED: Columns = {"email": sa.Text()}

ABSENT = "absent"
ACTIVE = "active"
PENDING = "pending"
REJECTED = "rejected"
OWNER = "owner"
MAY_INVITE = (OWNER, "director")


@dataclass(frozen=True, slots=True)
class User:
    """An account of a person. repr leaves the address out: it may be logged.

    profile_status: the contract's, in lower case; profile_reason: why it is no better, "" where nothing is wrong.
    """

    user_id: UUID
    email: str
    created_at: datetime
    profile_status: str = ACTIVE
    profile_reason: str = ""

    def __repr__(self) -> str:
        return f"User({self.user_id})"


@dataclass(frozen=True, slots=True)
class Member:
    """A user's role in a business; roles are the contract's, in lower case."""

    user_id: UUID
    role: str


@dataclass(frozen=True, slots=True)
class Business:
    """An account of a business. members: in the order in which they came. The rest: as of a User."""

    business_id: UUID
    created_at: datetime
    members: Sequence[Member]
    profile_status: str = ACTIVE
    profile_reason: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """An offer of a role. repr leaves the address out: it may be logged."""

    invitation_id: UUID
    business_id: UUID
    email: str
    role: str
    expires_at: datetime
    accepted_by: UUID | None

    def __repr__(self) -> str:
        return f"Invitation({self.invitation_id})"


# --- reading ----------------------------------------------------------------------------------------------------


def user(connection: Connection, user_id: UUID) -> User | None:
    """The user with this id."""
    return _user(connection, t.users.c.user_id == user_id)


def user_by_email(connection: Connection, email: str) -> User | None:
    """The user with this address, without regard to case."""
    return _user(connection, _same_email(email))


def email_taken(connection: Connection, email: str) -> bool:
    """Whether a user has this address, without regard to case."""
    return bool(connection.execute(sa.select(sa.exists().where(_same_email(email)))).scalar_one())


def emails_taken(connection: Connection, emails: Sequence[str]) -> set[str]:
    """Those of the addresses that a user has, as they were given."""
    asked = records("asked", _ASKED)
    taken = sa.select(asked.c.email).where(
        sa.exists().where(sa.func.lower(t.users.c.email) == sa.func.lower(asked.c.email))
    )
    return set(connection.execute(taken, arrays("asked", _ASKED, [{"email": email} for email in emails])).scalars())


def business(connection: Connection, business_id: UUID, *, as_of: datetime | None = None) -> Business | None:
    """The business with its members. as_of: only those who were members then."""
    b, m = t.businesses, t.members
    joined = sa.and_(m.c.business_id == b.c.business_id, sa.true() if as_of is None else m.c.created_at <= as_of)
    rows = connection.execute(
        sa.select(b.c.created_at, b.c.profile_status, b.c.profile_reason, m.c.user_id, m.c.role)
        .select_from(b.outerjoin(m, joined))
        .where(b.c.business_id == business_id)
        .order_by(m.c.created_at, m.c.user_id, m.c.role)
    ).all()
    if not rows:
        return None
    members = [Member(row.user_id, row.role) for row in rows if row.user_id is not None]
    one = rows[0]
    return Business(business_id, one.created_at, members, one.profile_status, one.profile_reason or "")


def business_status(connection: Connection, business_id: UUID) -> str | None:
    """Where the business stands with its profile; None where there is no such business."""
    b = t.businesses.c
    return connection.execute(sa.select(b.profile_status).where(b.business_id == business_id)).scalar_one_or_none()


def roles(connection: Connection, business_id: UUID, user_id: UUID) -> set[str]:
    """The user's roles in the business."""
    m = t.members
    chosen = sa.select(m.c.role).where(m.c.business_id == business_id, m.c.user_id == user_id)
    return set(connection.execute(chosen).scalars())


def invitation(connection: Connection, invitation_id: UUID) -> tuple[Invitation, bool] | None:
    """The invitation, and whether its time has passed by the database's clock (R13)."""
    i = t.invitations
    row = connection.execute(
        sa.select(i, (i.c.expires_at <= sa.func.now()).label("expired")).where(i.c.invitation_id == invitation_id)
    ).one_or_none()
    return None if row is None else (_invitation(row), row.expired)


# --- writing ----------------------------------------------------------------------------------------------------


def add_user(connection: Connection, user_id: UUID, email: str, profile_status: str = ACTIVE) -> User:
    """A new user. Raises IntegrityError: `users_pkey`, or EMAIL_KEY where the address is taken."""
    values = {"user_id": user_id, "email": email, "profile_status": profile_status}
    created_at = connection.execute(sa.insert(t.users).values(values).returning(t.users.c.created_at)).scalar_one()
    return User(user_id, email, created_at, profile_status)


def add_business(connection: Connection, business_id: UUID, owner: UUID, profile_status: str = ACTIVE) -> Business:
    """A new business with its owner. Raises IntegrityError: `businesses_pkey`, or where there is no such user."""
    b = t.businesses
    values = {"business_id": business_id, "profile_status": profile_status}
    created_at = connection.execute(sa.insert(b).values(values).returning(b.c.created_at)).scalar_one()
    add_member(connection, business_id, owner, OWNER)
    return Business(business_id, created_at, [Member(owner, OWNER)], profile_status)


def add_owners(
    connection: Connection, some: Sequence[tuple[UUID, str, UUID]], profile_status: str = ACTIVE
) -> list[tuple[User, Business]]:
    """Many new users, each with a business of its own: (user_id, address, business_id). Raises as the two above do."""
    # In one order, whoever writes: two batches that want the same addresses wait for each other, but in no circle.
    ordered = sorted(some, key=lambda one: one[1].lower())
    status = {"profile_status": profile_status}
    users = [{"user_id": user_id, "email": email, **status} for user_id, email, _ in ordered]
    created_at = connection.execute(sa.insert(t.users).returning(t.users.c.created_at), users).scalars().all()[0]
    connection.execute(
        sa.insert(t.businesses), [{"business_id": business_id, **status} for _, _, business_id in ordered]
    )
    connection.execute(
        sa.insert(t.members),
        [{"business_id": business_id, "user_id": user_id, "role": OWNER} for user_id, _, business_id in ordered],
    )
    # One local transaction has one time.
    return [
        (
            User(user_id, email, created_at, profile_status),
            Business(business_id, created_at, [Member(user_id, OWNER)], profile_status),
        )
        for user_id, email, business_id in some
    ]


def add_member(connection: Connection, business_id: UUID, user_id: UUID, role: str) -> None:
    """Gives a user a role."""
    connection.execute(sa.insert(t.members).values(business_id=business_id, user_id=user_id, role=role))


def add_invitation(
    connection: Connection, invitation_id: UUID, *, business_id: UUID, inviter: UUID, email: str, role: str
) -> Invitation:
    """A new invitation, open for as long as its table says."""
    i = t.invitations
    statement = (
        sa.insert(i)
        .values(invitation_id=invitation_id, business_id=business_id, inviter_user_id=inviter, email=email, role=role)
        .returning(i)
    )
    return _invitation(connection.execute(statement).one())


def settle(connection: Connection, *, user: User | None, business: Business | None) -> None:
    """Stores the profile's status and reason of these, where they still have none: nothing that is better is undone."""
    for table, key, one in (
        (t.users, t.users.c.user_id, user),
        (t.businesses, t.businesses.c.business_id, business),
    ):
        if one is None:
            continue
        name = one.user_id if isinstance(one, User) else one.business_id
        connection.execute(
            sa.update(table)
            .where(key == name, table.c.profile_status == ABSENT)
            .values(profile_status=one.profile_status, profile_reason=one.profile_reason or None)
        )


def accept(connection: Connection, invitation_id: UUID, user_id: UUID) -> bool:
    """Marks an invitation that is still open as accepted; False where it no longer is."""
    i = t.invitations
    statement = (
        sa.update(i)
        .where(i.c.invitation_id == invitation_id, i.c.accepted_by.is_(None), i.c.expires_at > sa.func.now())
        .values(accepted_by=user_id)
    )
    return connection.execute(statement).rowcount == 1


def _user(connection: Connection, where: sa.ColumnElement[bool]) -> User | None:
    u = t.users.c
    chosen = sa.select(u.user_id, u.email, u.created_at, u.profile_status, sa.func.coalesce(u.profile_reason, ""))
    row = connection.execute(chosen.where(where)).one_or_none()
    return None if row is None else User(*row)


def _same_email(email: str) -> sa.ColumnElement[bool]:
    return sa.func.lower(t.users.c.email) == sa.func.lower(email)


def _invitation(row: sa.Row[Any]) -> Invitation:
    return Invitation(row.invitation_id, row.business_id, row.email, row.role, row.expires_at, row.accepted_by)
