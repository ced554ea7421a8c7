"""An operator's way out at a coordinator (R5, R17): deliver again, give a delivery up, renew the log's id.

The decision itself is never rewritten (R2).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.tables import coordinator_action
from tandem.coordinator.tables import decision as d
from tandem.coordinator.tables import log as logs
from tandem.runtime.actions import Operator, record
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("tandem.operator")


def retry(decision_log: DecisionLog, key: TransactionKey, operator: Operator) -> datetime:
    """Has recovery deliver it now, parked deliveries included; when that was recorded.

    Raises NOT_FOUND, or INVALID_REQUEST if all is done.
    """
    with local_transaction(decision_log.engine) as connection:
        row = _locked(connection, key)
        waiting = sorted({*row.undelivered, *row.parked})
        if not waiting:
            raise InvalidRequest([Violation("transaction", "has nothing undelivered and nothing parked")])
        values = {"undelivered": waiting, "parked": {}, "next_attempt_at": sa.func.now()}
        connection.execute(sa.update(d).where(*_is(key)).values(**values))
        at = record(connection, coordinator_action, operator, "retry", key, ", ".join(waiting))
    log.warning("delivery to be made now", transaction=str(key), participants=waiting, actor=operator.actor)
    return at


def close(decision_log: DecisionLog, key: TransactionKey, participant: str, operator: Operator) -> datetime:
    """Gives up a parked delivery: what it was about has been put right by hand; when that was recorded.

    Raises NOT_FOUND, or INVALID_REQUEST if no delivery to this participant is parked.
    """
    with local_transaction(decision_log.engine) as connection:
        row = _locked(connection, key)
        if participant not in row.parked:
            raise InvalidRequest([Violation("participant", "has no parked delivery of this transaction")])
        rest = {name: reason for name, reason in row.parked.items() if name != participant}
        connection.execute(sa.update(d).where(*_is(key)).values(parked=rest))
        at = record(connection, coordinator_action, operator, "close", key, f"{participant}: {row.parked[participant]}")
    log.warning("delivery given up", transaction=str(key), participant=participant, actor=operator.actor)
    return at


def _is(key: TransactionKey) -> tuple[sa.ColumnElement[bool], ...]:
    return (d.c.coordinator == key.coordinator, d.c.transaction_id == key.transaction_id)


def _locked(connection: Connection, key: TransactionKey) -> Any:
    """The row of a decision, held until the local transaction ends."""
    statement = sa.select(d.c.undelivered, d.c.parked).where(*_is(key)).with_for_update()
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise TandemError(
            "no decision was written for this transaction", reason=Reason.NOT_FOUND, transaction_id=key.transaction_id
        )
    return row


def renew_log_id(engine: Engine, operator: Operator) -> UUID:
    """A new current id for the log, after a restore, once the old primary is surely gone (R17); returns it.

    Former ids are kept and still answered for. Transactions that were prepared under a former id can no longer commit.
    """
    renewed = uuid4()
    with local_transaction(engine) as connection:
        connection.execute(sa.update(logs).where(logs.c.current).values(current=False))
        connection.execute(sa.insert(logs).values(log_id=renewed, current=True))
        record(connection, coordinator_action, operator, "renew log_id", None, str(renewed))
    log.warning("log_id renewed", log_id=str(renewed), actor=operator.actor)
    return renewed
