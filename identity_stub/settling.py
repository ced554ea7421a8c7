"""What came of the profiles that a saga asked for: marks the accounts, each once, whatever comes twice or late.

A rejection is compensated by saying so: the account stays, since its owner was told that it is there, and shows
`rejected` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy.engine import Connection, Engine

from identity_stub import tables as t
from identity_stub import users
from identity_stub.requests import Kind
from tandem.kafka.handling import Dead, Later, Verdict, read_each
from tandem.kafka.messages import Incoming
from tandem.profiles.v1 import events_pb2
from tandem.runtime.batches import redo
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.records import Columns, arrays, records

_SETTLED: Columns = {"event_id": sa.UUID(), "status": sa.Text(), "reason": sa.Text()}


class SettlingMetrics:
    """What identity counts of them. An account that came twice is counted twice, so compare rates, not sums."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.settled = Counter(
            "tandem_profiles_settled",
            "Profiles asked for by a saga, by what came of them: active, rejected.",
            ["outcome"],
            registry=registry,
        )
        for outcome in (users.ACTIVE, users.REJECTED):
            self.settled.labels(outcome)


class Settling:
    """The handler of ProfilesSettled. source: identity's name in its events."""

    def __init__(self, engine: Engine, metrics: SettlingMetrics, *, source: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._source = source

    def __call__(self, messages: Sequence[Incoming]) -> list[Verdict]:
        """A verdict each: dead are those that can't be read or that nobody here has asked for."""
        events, verdicts = read_each(messages, self._read)
        for place, answer in zip(events, redo(list(events.values()), self._settle), strict=True):
            verdicts[place] = _verdict(answer)
            if answer is None:
                self._metrics.settled.labels(_status(events[place])).inc()
        return [verdicts[place] for place in range(len(messages))]

    def _read(self, message: Incoming) -> events_pb2.ProfilesSettled:
        event = message.read(events_pb2.ProfilesSettled)
        if event.source != self._source:
            raise InvalidRequest([Violation("source", "is another service's")])
        return event

    def _settle(self, events: Sequence[events_pb2.ProfilesSettled]) -> list[TandemError | None]:
        """One local transaction for all."""
        rows = [
            {"event_id": event.event_id, "status": _status(event), "reason": event.reason or None} for event in events
        ]
        values = arrays("settled", _SETTLED, rows)
        with local_transaction(self._engine) as connection:
            known = _known(connection, values)
            for statement in _MARKS:
                connection.execute(statement, values)
            failpoint("settling.before_local_commit")
        failpoint("settling.after_local_commit")
        unknown = TandemError("nobody here has asked for it", reason=Reason.NOT_FOUND)
        return [None if event.event_id in known else unknown for event in events]


def _status(event: events_pb2.ProfilesSettled) -> str:
    return users.ACTIVE if event.created else users.REJECTED


def _verdict(answer: TandemError | None) -> Verdict:
    if answer is None:
        return None
    return Dead(answer) if answer.reason is Reason.NOT_FOUND else Later(answer)


_settled = records("settled", _SETTLED)
_r = t.requests.c


def _mark(table: sa.Table, key: str, kinds: Sequence[Kind]) -> sa.Executable:
    """Marks the accounts that a request of these kinds has made, and that still wait."""
    return (
        sa.update(table)
        .where(
            table.c[key] == _r[key],
            _r.transaction_id == _settled.c.event_id,
            _r.kind.in_([kind.value for kind in kinds]),
            # Once: a message that comes again, or after somebody has put it right by hand, changes nothing.
            table.c.profile_status == users.PENDING,
        )
        .values(profile_status=_settled.c.status, profile_reason=_settled.c.reason)
    )


_MARKS = (
    _mark(t.users, "user_id", (Kind.SIGN_UP, Kind.CREATE_USER, Kind.ACCEPT_INVITATION)),
    _mark(t.businesses, "business_id", (Kind.SIGN_UP, Kind.CREATE_BUSINESS)),
)


def _known(connection: Connection, values: dict[str, str]) -> set[str]:
    found = sa.select(_r.transaction_id).join(_settled, _r.transaction_id == _settled.c.event_id)
    return {str(id_) for id_ in connection.execute(found, values).scalars()}
