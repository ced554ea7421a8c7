"""Gathers one signup's story: from identity's own rows, the decision log, and each participant. Reads only.

What is told of it is in `story.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from identity_stub import requests, users
from identity_stub.requests import Kind, Stored
from identity_stub.story import Branch, Decision, Story
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.runtime.database import ASIDE
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import DAY_MS, TransactionKey, id_time_ms
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.times import Times
from tandem.v1 import transaction_pb2

ASK_S = 3.0
"""For one participant's answer."""

_METHODS = {
    Kind.SIGN_UP: "SignUp",
    Kind.CREATE_USER: "CreateUser",
    Kind.CREATE_BUSINESS: "CreateBusiness",
    Kind.INVITE_USER: "InviteUser",
    Kind.ACCEPT_INVITATION: "AcceptInvitation",
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a story is read. coordinator: the initiator's name in the participants' books. times: its settings."""

    engine: Engine
    decision_log: DecisionLog
    participants: Participants
    coordinator: str
    times: Times


def explain(sources: Sources, asked: str) -> list[Story]:
    """The stories that an address, user id, request id or transaction id stands for; more than one where several
    callers have used the same request id. What is unknown has a story, too: it says what that means.
    """
    with local_transaction(sources.engine, ASIDE) as connection:
        now: datetime = connection.execute(sa.select(sa.func.now())).scalar_one().astimezone(UTC)
        found = requests.find(connection, request_id=asked)
        subject: str | None = None
        id_ = _uuid(asked)
        if not found and id_ is not None:
            found = requests.find(connection, transaction_id=id_)
        if not found and ("@" in asked or id_ is not None):
            user = users.user_by_email(connection, asked) if id_ is None else users.user(connection, id_)
            if user is not None:
                subject = f"The user {user.user_id} was made at {user.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
                found = requests.find(connection, user_id=user.user_id)
    if found:
        return [_of_request(sources, now, stored, subject) for stored in found]
    if subject is not None:
        return [Story(sources.coordinator, now, f"{subject}, but not by a request to this service.")]
    if id_ is not None and id_.version == 7:
        return [_of_transaction(sources, now, id_)]
    return [Story(sources.coordinator, now, _unknown("@" in asked))]


def _unknown(is_address: bool) -> str:
    what = "No user has this address." if is_address else "No user and no request that succeeded has this id."
    return (
        f"{what} If it was tried, nothing of it is committed here: it was refused or aborted, or it is under way. "
        "What is under way is listed by its transaction id at the participants."
    )


def _of_request(sources: Sources, now: datetime, stored: Stored, subject: str | None) -> Story:
    name = f"request {stored.request_id}" if stored.is_named else "request without an id"
    by = f"{_METHODS[Kind(stored.kind)]}, {name} of {stored.caller}"
    made = ", ".join(
        f"the {what} {id_}"
        for what, id_ in (
            ("user", stored.user_id), ("business", stored.business_id), ("invitation", stored.invitation_id)
        )
        if id_ is not None
    )  # fmt: skip
    opening = f"{subject} by {by}." if subject else f"{by}: it succeeded and stands for {made}."
    if stored.transaction_id is None:
        return Story(sources.coordinator, now, opening, request=stored)
    return _of_transaction(sources, now, stored.transaction_id, opening=opening, stored=stored)


def _of_transaction(
    sources: Sources,
    now: datetime,
    transaction_id: UUID,
    *,
    opening: str = "This transaction belongs to no request that succeeded here.",
    stored: Stored | None = None,
) -> Story:
    key = TransactionKey(sources.coordinator, transaction_id)
    now_ms = int(now.timestamp() * 1000)
    row = sources.decision_log.get(key)
    listed = set(row.participants) if row is not None else set()
    return Story(
        sources.coordinator,
        now,
        opening,
        request=stored,
        transaction_id=transaction_id,
        began_at=datetime.fromtimestamp(id_time_ms(transaction_id) / 1000, UTC),
        expired=now_ms - id_time_ms(transaction_id) > sources.times.retention_ms - DAY_MS,
        decision=None if row is None else _decision(row),
        branches=[
            _branch(sources.participants, name, key, row) for name in sorted(listed or sources.participants.names)
        ],
    )


def _decision(row: Row[Any]) -> Decision:
    due = row.next_attempt_at if row.undelivered else None
    return Decision(
        row.outcome,
        row.decided_at.astimezone(UTC),
        row.attempts,
        due.astimezone(UTC) if due else None,
        row.last_error or "",
    )


def _branch(participants: Participants, name: str, key: TransactionKey, row: Row[Any] | None) -> Branch:
    """What one participant holds, beside what the log says of it."""
    log: dict[str, Any] = {"participant": name}
    if row is not None and name in row.participants:
        parked = row.parked.get(name, "")
        log |= {"listed": True, "parked": parked, "acknowledged": name not in row.undelivered and not parked}
    if name not in participants.names:
        return Branch(**log, trouble="it is not in the configuration")
    try:
        held = participants.get(name, key, timeout_s=ASK_S)
    except TandemError as error:
        return Branch(**log, trouble=error.reason.value)
    if held is None:
        return Branch(**log)
    state = transaction_pb2.TransactionState.Name(held.state).removeprefix("TRANSACTION_STATE_").lower()
    by = transaction_pb2.ResolvedBy.Name(held.resolved_by).removeprefix("RESOLVED_BY_").lower()
    return Branch(
        **log,
        state=state,
        tombstone=not held.digest,
        rows=held.staged,
        confirmed=held.confirmed,
        prepared_at=_time(held, "prepare_time"),
        resolved_at=_time(held, "resolve_time"),
        resolved_by="" if by == "unspecified" else by,
        asks_at=_time(held, "next_attempt_time"),
        parked_there=held.parked,
    )


def _time(held: transaction_pb2.PreparedTransaction, field: str) -> datetime | None:
    at: datetime = getattr(held, field).ToDatetime(tzinfo=UTC)
    return at if held.HasField(field) else None  # type: ignore[arg-type]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
