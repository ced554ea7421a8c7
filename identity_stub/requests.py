"""The requests that succeeded: how a repeat finds its first answer.

A row is written in the same local transaction as what the request made, so a row here means success, and success of a
request with an id means a row here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.engine import Connection

from identity_stub import tables as t
from identity_stub import users
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.records import Columns, arrays, records

_ASKED: Columns = {"caller": sa.Text(), "request_id": sa.Text()}


class Kind(StrEnum):
    """Which method was called."""

    SIGN_UP = "sign_up"
    CREATE_USER = "create_user"
    CREATE_BUSINESS = "create_business"
    INVITE_USER = "invite_user"
    ACCEPT_INVITATION = "accept_invitation"


@dataclass(frozen=True, slots=True)
class Request:
    """A call that makes something. request_id: the client's; "" for none. content_hash: 32 bytes."""

    caller: str
    request_id: str
    kind: Kind
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class Made:
    """What a request has made; None where it makes no such thing."""

    user: users.User | None = None
    business: users.Business | None = None
    invitation: users.Invitation | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """One row: what an operator may know of a request."""

    caller: str
    request_id: str
    kind: str
    user_id: UUID | None
    business_id: UUID | None
    invitation_id: UUID | None
    transaction_id: UUID | None
    created_at: datetime

    @property
    def is_named(self) -> bool:
        """Whether the client gave it an id."""
        return " " not in self.request_id


def content_hash(message: Message) -> bytes:
    """SHA-256 over the deterministic bytes of a request, without its `request_id`."""
    content = type(message)()
    content.CopyFrom(message)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def first_answer(connection: Connection, request: Request) -> Made | None:
    """What this request made before: its first answer, whatever happened to it since. None where it made nothing yet.

    Raises REQUEST_REUSED where the id belongs to a request with other content.
    """
    if not request.request_id:
        return None
    r = t.requests
    row = connection.execute(
        sa.select(r).where(r.c.caller == request.caller, r.c.request_id == request.request_id)
    ).one_or_none()
    if row is None:
        return None
    if (row.kind, bytes(row.content_hash)) != (request.kind.value, request.content_hash):
        raise TandemError(
            "this request_id belongs to a request with other content",
            reason=Reason.REQUEST_REUSED,
            metadata={"kind": row.kind},
        )
    invitation = users.invitation(connection, row.invitation_id) if row.invitation_id else None
    return Made(
        user=users.user(connection, row.user_id) if row.user_id else None,
        # Its members of that time: those who came later are not part of the first answer.
        business=users.business(connection, row.business_id, as_of=row.created_at) if row.business_id else None,
        invitation=replace(invitation[0], accepted_by=None) if invitation else None,
    )


def known(connection: Connection, some: Sequence[Request]) -> set[tuple[str, str]]:
    """(caller, request_id) of those whose id belongs to a request that succeeded, this one or another."""
    r, asked = t.requests, records("asked", _ASKED)
    found = connection.execute(
        sa.select(r.c.caller, r.c.request_id).join(
            asked, sa.and_(r.c.caller == asked.c.caller, r.c.request_id == asked.c.request_id)
        ),
        arrays("asked", _ASKED, [{"caller": one.caller, "request_id": one.request_id} for one in some]),
    )
    return {(row.caller, row.request_id) for row in found}


def store(connection: Connection, request: Request, made: Made, transaction_id: UUID | None) -> None:
    """Writes the request beside what it made. Raises IntegrityError `requests_pkey` where it is there already."""
    store_many(connection, [(request, made, transaction_id)])


def store_many(connection: Connection, some: Sequence[tuple[Request, Made, UUID | None]]) -> None:
    """Many of them: (request, what it made, its transaction)."""
    connection.execute(
        sa.insert(t.requests),
        [
            {
                "caller": request.caller,
                # No client can send a blank: an id of ours is never taken for one of theirs.
                "request_id": request.request_id or f"unnamed {uuid4()}",
                "kind": request.kind.value,
                "content_hash": request.content_hash,
                "user_id": made.user.user_id if made.user else None,
                "business_id": made.business.business_id if made.business else None,
                "invitation_id": made.invitation.invitation_id if made.invitation else None,
                "transaction_id": transaction_id,
            }
            for request, made, transaction_id in some
        ],
    )


def find(
    connection: Connection,
    *,
    request_id: str | None = None,
    user_id: UUID | None = None,
    transaction_id: UUID | None = None,
    limit: int = 10,
) -> list[Stored]:
    """The requests with this id (of any caller), that made this user, or of this transaction; the newest first."""
    r = t.requests
    where = [
        column == value
        for column, value in (
            (r.c.request_id, request_id),
            (r.c.user_id, user_id),
            (r.c.transaction_id, transaction_id),
        )
        if value is not None
    ]
    assert where, "one of the three"
    columns = [column for column in r.c if column.name != "content_hash"]
    rows = connection.execute(sa.select(*columns).where(*where).order_by(r.c.created_at.desc()).limit(limit))
    return [Stored(**row._mapping) for row in rows]
