"""Saga: the account first, its profile when the news has arrived.

One local commit writes the own rows and the event that asks for the profile. A relay publishes it, profiles takes it up
once, and what came of it comes back (`settling.py`). Until then the account's `profile_status` is pending. A refusal
comes after the answer: it marks the account as rejected, and a person has to see to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from sqlalchemy.engine import Connection, Engine
from uuid_utils.compat import uuid7

from identity_stub import tables as t
from identity_stub import users
from identity_stub.provisioning import OwnRows, OwnRowsOfMany
from tandem.kafka import outbox
from tandem.kafka.config import Cluster
from tandem.kafka.messages import Outgoing, outgoing
from tandem.profiles.topics import REQUESTED
from tandem.profiles.v1 import business_pb2, events_pb2, person_pb2
from tandem.runtime.errors import TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction

T = TypeVar("T")


class Saga:
    """Needs nobody to answer: the own database is enough. source: identity's name in its events."""

    profile_status = users.PENDING

    def __init__(self, engine: Engine, cluster: Cluster, *, source: str) -> None:
        self._engine = engine
        self._topic = cluster.topic(*REQUESTED)
        self._source = source

    def __repr__(self) -> str:
        return f"Saga({self._topic!r}, source={self._source!r})"

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """Commits the own rows with the event. See `Provisioning.create`: profiles' refusals come later."""
        event_id = uuid7()
        message = self._event(event_id, profile)
        with local_transaction(self._engine) as connection:
            made = own_rows(connection, event_id)
            self._write(connection, [message])
        failpoint("saga.after_local_commit")
        return made

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        """Likewise, with one local commit for all. See `Provisioning.create_many`."""
        events: dict[int, tuple[UUID, Outgoing]] = {}
        answers: dict[int, T | TandemError] = {}
        for place, profile in enumerate(profiles):
            event_id = uuid7()
            try:
                events[place] = (event_id, self._event(event_id, profile))
            except TandemError as error:
                answers[place] = error
        if events:
            with local_transaction(self._engine) as connection:
                made = own_rows(connection, [(place, event_id) for place, (event_id, _) in events.items()])
                self._write(connection, [message for _, message in events.values()])
            failpoint("saga.after_local_commit")
            answers |= zip(events, made, strict=True)
        return [answers[place] for place in range(len(profiles))]

    def close(self) -> None:
        """Nothing runs in the background here."""

    def _event(self, event_id: UUID, profile: Mapping[str, Message]) -> Outgoing:
        """The news, under the key that puts it in order. Raises InvalidRequest where no broker would take it."""
        event = events_pb2.ProfilesRequested(source=self._source, event_id=str(event_id))
        for entity in profile.values():
            event.writes.add().Pack(entity, deterministic=True)
        return outgoing(self._topic, _key(profile), event)

    def _write(self, connection: Connection, messages: Sequence[Outgoing]) -> None:
        outbox.add(connection, t.outbox, messages)
        failpoint("saga.before_local_commit")


def _key(profile: Mapping[str, Message]) -> str:
    """The id of the entity whose order counts: a role must come after its business, so a business goes before a person.

    No two events make the same person, so of those the order says nothing.
    """
    for entity in profile.values():
        if isinstance(entity, business_pb2.Business | business_pb2.BusinessPerson):
            return entity.business_id
    return next(entity.person_id for entity in profile.values() if isinstance(entity, person_pb2.Person))
