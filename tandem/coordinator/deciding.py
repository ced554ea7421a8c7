"""The deciding INSERT: what it writes, and the constraints by which it raises instead (R1, R2, R14, R15, R17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from tandem.coordinator.tables import decision as d
from tandem.coordinator.tables import log
from tandem.coordinator.transaction import Outcome
from tandem.runtime.database import NOW_MS, ms, seconds
from tandem.runtime.errors import Reason
from tandem.runtime.identifiers import DAY_MS, TransactionKey, id_time_ms
from tandem.runtime.records import KEY_COLUMNS, array, arrays, records

RECOVERY_AFTER_S = 1.0
"""Recovery leaves a decision to its driver for so long (R11)."""

CHECKS = {
    "decision_check_ended": Reason.LOCAL_TRANSACTION_ENDED,
    "decision_check_not_durable": Reason.NOT_DURABLE,
    "decision_check_wrong_log": Reason.WRONG_LOG,
    "decision_check_expired": Reason.TRANSACTION_EXPIRED,
    "decision_check_ahead": Reason.TRANSACTION_AHEAD,
}
"""Constraints that make the deciding INSERT raise, and what each of them says (R1, R14)."""

_COLUMNS = {**KEY_COLUMNS, "id_ms": sa.BigInteger(), "participants": JSONB(), "undelivered": sa.Text()}

PRIMARY_KEY = "decision_pkey"


@dataclass(frozen=True, slots=True)
class Deciding:
    """A transaction about to be decided. participants: name → digest."""

    key: TransactionKey
    participants: Mapping[str, bytes]

    def row(self) -> dict[str, object]:
        """As a record of the deciding INSERT."""
        return {
            **self.key.row(),
            "id_ms": id_time_ms(self.key.transaction_id),
            "participants": {name: digest.hex() for name, digest in sorted(self.participants.items())},
            "undelivered": array(sorted(self.participants)),
        }


def insert_of(deciding: Sequence[Deciding], *, log_id: UUID, retention_ms: int) -> sa.Insert:
    """The INSERT that decides `committed` for all of them, or raises (R1): plain, never ON CONFLICT. With its values.

    It holds only where its COMMIT waits for the disk (R15), in the log `log_id`, and for ids that are neither expired
    nor ahead. Otherwise one of CHECKS is violated; an existing row violates PRIMARY_KEY.
    """
    return _insert(retention_ms, sa.literal(log_id, sa.Uuid), given=_arrays(deciding))


@cache
def insert_in_block(retention_ms: int) -> sa.Insert:
    """The same with `parameters`, for the driver's own block; made once."""
    token = sa.bindparam("token", type_=sa.Text)
    return _insert(retention_ms, sa.bindparam("log_id", type_=sa.Uuid), token=token)


def parameters(deciding: Sequence[Deciding], *, log_id: UUID, token: str) -> dict[str, object]:
    """For `insert_in_block`: it holds only in the local transaction whose first statement set `token`, too."""
    return {**_arrays(deciding), "log_id": log_id, "token": token}


def _arrays(deciding: Sequence[Deciding]) -> dict[str, str]:
    rows = [item.row() for item in sorted(deciding, key=lambda item: item.key)]
    return arrays("deciding", _COLUMNS, rows)


def _insert(
    retention_ms: int,
    log_id: sa.ColumnElement[UUID],
    *,
    token: sa.ColumnElement[str] | None = None,
    given: Mapping[str, object] | None = None,
) -> sa.Insert:
    asked = records("deciding", _COLUMNS, given)
    is_current = sa.exists().where(log.c.current, log.c.log_id == log_id)
    wrong: list[tuple[sa.ColumnElement[bool], sa.ColumnElement[str]]] = [
        (sa.literal_column("current_setting('synchronous_commit') = 'off'", sa.Boolean()), _text("not_durable")),
        (~is_current, _text("wrong_log")),
        (asked.c.id_ms < NOW_MS - ms(retention_ms - DAY_MS), _text("expired")),
        (asked.c.id_ms > NOW_MS + ms(DAY_MS), _text("ahead")),
    ]
    if token is not None:
        set_token = sa.func.current_setting("tandem.token", True)
        wrong.insert(0, (set_token.is_distinct_from(token), _text("ended")))
    chosen = sa.select(
        asked.c.coordinator,
        asked.c.transaction_id,
        sa.case(*wrong, else_=_text(Outcome.COMMITTED.value)),
        asked.c.participants,
        sa.cast(asked.c.undelivered, ARRAY(sa.Text)),
        sa.literal_column("'{}'::jsonb"),
        sa.func.now() + seconds(RECOVERY_AFTER_S),
    )
    return sa.insert(d).from_select(
        ["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked", "next_attempt_at"],
        chosen,
    )


def _text(constant: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{constant}'", sa.Text())
