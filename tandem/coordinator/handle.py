"""What the caller holds while a transaction runs: `Transaction`, and `Batch` for many."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from tandem.coordinator.deciding import Deciding
from tandem.coordinator.errors import TransactionReused
from tandem.coordinator.transaction import Decided, Outcome, Phase, advance
from tandem.runtime.digest import transaction_digest, write_digests
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey

Branches = Mapping[str, Sequence[Message]]
"""participant → the entities to create there; each becomes an Any unless it is one."""

Finish = Callable[["Transaction"], Outcome]


class Transaction:
    """One transaction of an initiator.

    id: its UUIDv7. connection: the block's local transaction, inside the block. decision: the executable INSERT, after
    `Coordinator.prepare`. phase: where it stands. sent: whether the deciding INSERT may have reached the server.
    undelivered: who has not acknowledged a commit yet. counted: the driver's, for its metrics.
    """

    def __init__(
        self,
        key: TransactionKey,
        writes: Mapping[str, Sequence[AnyMessage]],
        *,
        log_id: UUID,
        own_id: bool,
        finish: Finish,
    ) -> None:
        self.key = key
        self.writes = writes
        self.log_id = log_id
        self.own_id = own_id
        self.digests = {name: transaction_digest(write_digests(some)) for name, some in writes.items()}
        self.phase = Phase.NEW
        self.error: TandemError | None = None
        self.undelivered: tuple[str, ...] = tuple(sorted(writes))
        self.decision: sa.Insert | None = None
        self.sent = False
        self.counted = False
        self._connection: Connection | None = None
        self._finish = finish

    def __repr__(self) -> str:
        return f"Transaction({self.key}, {self.phase.value}, participants={sorted(self.writes)})"

    @property
    def id(self) -> UUID:
        """The transaction_id."""
        return self.key.transaction_id

    @property
    def connection(self) -> Connection:
        """The local transaction's connection; only inside the block."""
        assert self._connection is not None, "tx.connection is there inside the block only"
        return self._connection

    @property
    def delivered(self) -> bool:
        """Whether every participant has acknowledged the commit. False is no failure: recovery delivers (R12)."""
        return self.phase is Phase.COMMITTED and not self.undelivered

    @property
    def deciding(self) -> Deciding:
        """What the decision will store."""
        return Deciding(self.key, self.digests)

    def decision_sql(self, *, paramstyle: str = "pyformat") -> tuple[str, dict[str, object]]:
        """The deciding INSERT as SQL text and parameters, for any driver.

        paramstyle: "pyformat" (psycopg), "named", or "numeric_dollar" (asyncpg: values in the order of the dict).
        """
        assert self.decision is not None, "prepare() makes the decision"
        compiled = self.decision.compile(dialect=postgresql.dialect(paramstyle=paramstyle))  # type: ignore[no-untyped-call]
        values = {
            name: json.dumps(value) if isinstance(value, list) else str(value) if isinstance(value, UUID) else value
            for name, value in compiled.params.items()
        }
        return str(compiled), {name: values[name] for name in compiled.positiontup or values}

    def finish(self) -> Outcome:
        """Reads the log, then confirms or aborts: the last of the three calls. Raises OutcomeUnknown; repeatable."""
        return self._finish(self)

    def become(self, phase: Phase) -> None:
        """The next phase, if the protocol has that step."""
        self.phase = advance(self.phase, phase)

    def settle(self, decided: Decided) -> None:
        """Takes over what the log holds. Other content under this id is somebody else's: it is left alone (R2, R6)."""
        if decided.outcome is Outcome.ABORTED:
            self.become(Phase.ABORTED)
        elif dict(decided.participants) == self.digests:
            self.become(Phase.COMMITTED)
        else:
            self.become(Phase.REUSED)
            self.error = TransactionReused(
                "this transaction_id is committed with other content", transaction_id=self.id
            )

    def use(self, connection: Connection | None) -> None:
        """The driver's: sets what `connection` gives."""
        self._connection = connection


class Batch:
    """Many transactions with one local commit."""

    def __init__(self, transactions: Sequence[Transaction]) -> None:
        self.transactions = tuple(transactions)
        self.accepted = tuple(tx for tx in transactions if tx.phase is Phase.PREPARED)

    def __repr__(self) -> str:
        return f"Batch({len(self.accepted)} of {len(self.transactions)} accepted)"

    @property
    def refused(self) -> tuple[Transaction, ...]:
        """Those that will not be decided; each has its `error`."""
        return tuple(tx for tx in self.transactions if tx.error is not None)

    @property
    def connection(self) -> Connection:
        """The local transaction's connection; only inside the block. Where none is accepted: raises why not."""
        if not self.accepted and self.refused:
            assert self.refused[0].error is not None
            raise self.refused[0].error
        return self.accepted[0].connection

    def use(self, connection: Connection | None) -> None:
        """The driver's: sets what `connection` gives."""
        for tx in self.accepted:
            tx.use(connection)


def packed(branches: Branches) -> dict[str, list[AnyMessage]]:
    """The writes as they are sent and digested: the same bytes for the same message."""
    return {name: [_packed(message) for message in messages] for name, messages in branches.items()}


def _packed(message: Message) -> AnyMessage:
    if isinstance(message, AnyMessage):
        return message
    made = AnyMessage()
    made.Pack(message, deterministic=True)
    return made
