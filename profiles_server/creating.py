"""Profiles that a saga asks for: made when the event arrives, once, all its entities or none.

There is no vote and nobody waits, so nothing is ever prepared here: the same statements stage and publish in one local
transaction, together with the inbox's row and the news of what came of it. A refusal is such news, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.engine import Connection, Engine

from profiles_server import tables as t
from tandem.kafka import inbox, outbox
from tandem.kafka.config import Cluster
from tandem.kafka.handling import Later, Verdict, read_each
from tandem.kafka.messages import Incoming, outgoing
from tandem.participant.participant import MAX_STAGE_ROUNDS
from tandem.participant.resource import Accepted, HeldBy, Refused, Resource, Staged, Staging, Write
from tandem.profiles.topics import settled
from tandem.profiles.v1 import events_pb2
from tandem.runtime.batches import redo, rounds
from tandem.runtime.errors import InvalidRequest, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger, step

log = logger("profiles.creating")

CREATED = "created"
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class _Event:
    """A ProfilesRequested whose shape is right. key: (source, event id). order: the message's key. error: what is wrong
    with a write, if anything: then it is rejected without a look at the database."""

    key: TransactionKey
    order: str
    writes: Sequence[Write] = ()
    error: TandemError | None = None


class Creating:
    """The handler of ProfilesRequested."""

    def __init__(self, engine: Engine, resource: Resource, cluster: Cluster) -> None:
        self._engine = engine
        self._resource = resource
        self._cluster = cluster

    def __call__(self, messages: Sequence[Incoming]) -> list[Verdict]:
        """A verdict each. Of one key, nothing is done while an earlier one waits."""
        events, verdicts = read_each(messages, self._read)
        places = list(events)
        waiting: set[str] = set()
        for some in rounds([events[place].order for place in places]):
            now = [places[i] for i in some if events[places[i]].order not in waiting]
            for place, answer in zip(now, redo([events[place] for place in now], self._create), strict=True):
                verdicts[place] = None if answer is None else Later(answer)
                if answer is not None:
                    waiting.add(events[place].order)
        held = Later(TandemError("one before it with the same key waits", reason=Reason.IN_PROGRESS))
        return [verdicts.get(place, held) for place in range(len(messages))]

    def _read(self, message: Incoming) -> _Event:
        """Raises InvalidRequest where nobody could be told what came of it, or it is no event at all."""
        event = message.read(events_pb2.ProfilesRequested)
        key = TransactionKey(event.source, UUID(event.event_id))
        writes: list[Write] = []
        for position, write in enumerate(event.writes):
            try:
                writes.append(self._resource.parse(write))
            except InvalidRequest as error:
                return _Event(key, message.key, error=error.below(f"writes[{position}]"))
        return _Event(key, message.key, writes)

    # --- one local transaction --------------------------------------------------------------------------------

    def _create(self, events: Sequence[_Event]) -> list[TandemError | None]:
        """None for each that is done, now or before; an error for those that have to wait."""
        by_key = {event.key: event for event in events}  # an event may be here twice, under two keys
        with local_transaction(self._engine) as connection:
            fresh = inbox.take(connection, t.inbox, sorted(by_key))
            failpoint("creating.after_inbox")
            outcomes = self._stage(connection, [by_key[key] for key in sorted(fresh)])
            late = {key: what.error for key, what in outcomes.items() if isinstance(what, Later)}
            done = {key: what for key, what in outcomes.items() if not isinstance(what, Later)}
            inbox.put_back(connection, t.inbox, sorted(late))
            inbox.settle(connection, t.inbox, {key: _row(error) for key, error in done.items()})
            outbox.add(
                connection,
                t.outbox,
                [outgoing(self._cluster.topic(*settled(key.coordinator)), by_key[key].order, _news(key, error))
                 for key, error in done.items()],
            )  # fmt: skip
            failpoint("creating.before_local_commit")
        failpoint("creating.after_local_commit")
        step(log, "taken up", sorted(done))
        return [late.get(event.key) for event in events]

    def _stage(
        self, connection: Connection, fresh: Sequence[_Event]
    ) -> dict[TransactionKey, TandemError | Later | None]:
        """Stages and publishes: None for each that is created, the refusal, or Later."""
        outcomes: dict[TransactionKey, TandemError | Later | None] = {
            event.key: event.error for event in fresh if event.error is not None
        }
        pending = [Staging(event.key, event.writes) for event in fresh if event.error is None]
        for _ in range(MAX_STAGE_ROUNDS):
            if not pending:
                break
            staged = dict(zip([one.key for one in pending], self._resource.stage(connection, pending), strict=True))
            accepted = sorted(key for key, answer in staged.items() if isinstance(answer, Accepted))
            self._resource.discard(connection, sorted(staged.keys() - set(accepted)))
            self._publish(connection, accepted, {one.key: one for one in pending})
            outcomes |= {key: _told(answer) for key, answer in staged.items()}
            # Whom a neighbour was in the way of, its neighbour has ended meanwhile: now it can be said.
            pending = [one for one in pending if isinstance(answer := staged[one.key], HeldBy) and answer.key in staged]
        return outcomes

    def _publish(
        self, connection: Connection, keys: Sequence[TransactionKey], stagings: dict[TransactionKey, Staging]
    ) -> None:
        published = self._resource.publish(connection, keys)
        for key in keys:
            staged = sum(write.rows for write in stagings[key].writes)
            if published.get(key, 0) != staged:
                raise TandemError("published another number of rows than it staged", transaction_id=key.transaction_id)


def _told(answer: Staged) -> TandemError | Later | None:
    match answer:
        case Refused(error):
            # What stood in the way has gone: that is no refusal.
            return Later(error) if error.retry_after_s is not None else error
        case HeldBy(holder):
            held = TandemError(
                "a transaction in progress holds what it needs",
                reason=Reason.HELD,
                transaction_id=holder.transaction_id,
            )
            return Later(held)
    return None


def _row(error: TandemError | None) -> tuple[str, str | None]:
    return (CREATED, None) if error is None else (REJECTED, error.reason.value)


def _news(key: TransactionKey, error: TandemError | None) -> events_pb2.ProfilesSettled:
    news = events_pb2.ProfilesSettled(source=key.coordinator, event_id=str(key.transaction_id), created=error is None)
    if error is not None:
        news.reason = error.reason.value
        news.field = error.metadata.get("field", "") or next((wrong.field for wrong in error.violations), "")
    return news
