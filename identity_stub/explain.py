"""Gathers one signup's story: from identity's own rows, the decision log, and each participant. Reads only.

What is told of it is in `story.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from identity_stub import requests, users
from identity_stub.requests import Kind, Stored
from identity_stub.story import Story
from tandem.coordinator import story
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.runtime.database import ASIDE
from tandem.runtime.identifiers import Age, TransactionKey, age
from tandem.runtime.local_transaction import local_transaction

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
    """Where a story is read. coordinator: the initiator's name in the participants' books."""

    engine: Engine
    decision_log: DecisionLog
    participants: Participants
    coordinator: str


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
    if _is_event(sources, now, stored.transaction_id):
        return _of_event(sources, now, stored, opening)
    return _of_transaction(sources, now, stored.transaction_id, opening=opening, stored=stored)


def _is_event(sources: Sources, now: datetime, id_: UUID) -> bool:
    """Whether the attempt of a request that succeeded was a saga's: a transaction would have its decision in the log,
    which is not purged before its id has expired."""
    kept = age(id_, now_ms=int(now.timestamp() * 1000), retention_ms=sources.decision_log.times.retention_ms)
    return kept is Age.FINE and sources.decision_log.get(TransactionKey(sources.coordinator, id_)) is None


def _of_event(sources: Sources, now: datetime, stored: Stored, opening: str) -> Story:
    with local_transaction(sources.engine, ASIDE) as connection:
        account: users.User | users.Business | None = None
        if stored.user_id is not None:
            account = users.user(connection, stored.user_id)
        elif stored.business_id is not None:
            account = users.business(connection, stored.business_id)
    return Story(
        sources.coordinator,
        now,
        opening,
        request=stored,
        event_id=stored.transaction_id,
        profile_status=account.profile_status if account else "",
        profile_reason=account.profile_reason if account else "",
    )


def _of_transaction(
    sources: Sources,
    now: datetime,
    transaction_id: UUID,
    *,
    opening: str = "This transaction belongs to no request that succeeded here.",
    stored: Stored | None = None,
) -> Story:
    told = story.gather(
        sources.decision_log,
        sources.participants,
        TransactionKey(sources.coordinator, transaction_id),
        timeout_s=ASK_S,
    )
    return Story(
        sources.coordinator,
        now,
        opening,
        request=stored,
        transaction_id=transaction_id,
        began_at=told.began_at,
        expired=told.expired,
        decision=told.decision,
        branches=told.branches,
    )


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
