"""An operator's way out at a participant (R5): ask again, force an outcome, close a contradiction.

A forced outcome is heuristic: it may be the wrong one. It is written down with its reason, counted, and stays on the
sweeper's list until the coordinator has answered: agreement confirms it, contradiction parks it and pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tandem.participant import rows
from tandem.participant.participant import Participant
from tandem.participant.tables import participant_action
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.actions import Operator, record
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("tandem.operator")


@dataclass(frozen=True, slots=True)
class Forced:
    """What a force did, or would do.

    staged: how many rows were promised; found: how many were there to be published or discarded. Fewer means that
    somebody has been at the data, and forcing is the way out.
    """

    outcome: State
    staged: int
    found: int
    done: bool


class _DryRun(Exception):
    pass


def force(
    participant: Participant, key: TransactionKey, outcome: State, operator: Operator, *, dry_run: bool = False
) -> Forced:
    """Ends a prepared transaction by hand, as COMMITTED or ABORTED.

    dry_run: does it all and rolls it back. Raises NOT_FOUND, or INVALID_REQUEST if it has ended already.
    """
    if outcome is State.PREPARED:
        raise InvalidRequest([Violation("outcome", "must be committed or aborted")])
    staged = found = 0
    try:
        with local_transaction(participant.engine) as connection:
            changed = rows.force(connection, key, outcome, not_before_s=participant.times.push_after_s)
            if changed is None:
                raise _ended(rows.read(connection, [key]), key)
            staged = changed
            found = participant.apply(connection, [key], outcome)[key]
            what = f"{found} rows" if found == staged else f"{found} of {staged} rows"
            record(connection, participant_action, operator, "force", key, f"{outcome.value}, {what}")
            if dry_run:
                raise _DryRun
    except _DryRun:
        return Forced(outcome, staged, found, done=False)
    participant.metrics.outcomes.labels(outcome.value, ResolvedBy.OPERATOR.value).inc()
    log.error("heuristic outcome", transaction=str(key), outcome=outcome.value, actor=operator.actor)
    return Forced(outcome, staged, found, done=True)


def retry(participant: Participant, key: TransactionKey, operator: Operator) -> None:
    """Has the sweeper ask for it as soon as that may be, parked or not: not while its driver may be at work.

    Raises NOT_FOUND, or INVALID_REQUEST if nothing is to be asked.
    """
    at = rows.soonest(participant.times.push_after_s)
    _change(participant, key, operator, "retry", ~t.c.confirmed, parked=None, next_attempt_at=at)


def close(participant: Participant, key: TransactionKey, operator: Operator) -> None:
    """Ends the asking for a decision: the contradiction was put right by hand, or the coordinator will never answer.

    The outcome stays what it is. Raises NOT_FOUND, or INVALID_REQUEST for what is confirmed, or still prepared: force
    it first.
    """
    forced = sa.and_(t.c.state != State.PREPARED.value, ~t.c.confirmed)
    _change(participant, key, operator, "close", forced, parked=None, confirmed=True, next_attempt_at=None)


def _change(
    participant: Participant,
    key: TransactionKey,
    operator: Operator,
    action: str,
    where: sa.ColumnElement[bool],
    **values: object,
) -> None:
    with local_transaction(participant.engine) as connection:
        changed = connection.execute(
            sa.update(t)
            .where(t.c.coordinator == key.coordinator, t.c.transaction_id == key.transaction_id, where)
            .values(**values)
            .returning(t.c.state)
        ).one_or_none()
        if changed is None:
            raise _ended(rows.read(connection, [key]), key)
        record(connection, participant_action, operator, action, key, changed.state)
    log.warning("done by hand", action=action, transaction=str(key), actor=operator.actor)


def _ended(read: rows.Read, key: TransactionKey) -> TandemError:
    held = read.held.get(key)
    if held is None:
        return TandemError("nothing is known of this transaction here", reason=Reason.NOT_FOUND)
    return InvalidRequest([Violation("transaction", f"is {held.state.value}: there is nothing of the kind to be done")])
