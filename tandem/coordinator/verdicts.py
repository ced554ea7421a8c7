"""What the driver's caller is told: from votes, from a failure and what the log said after it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tandem.coordinator.deciding import CHECKS, PRIMARY_KEY
from tandem.coordinator.errors import (
    Fenced,
    LocalTransactionEnded,
    LocalTransactionRefused,
    OutcomeUnknown,
    Refused,
    TransactionExpired,
    TransactionReused,
    Unavailable,
)
from tandem.coordinator.handle import Transaction
from tandem.coordinator.transaction import RETRYABLE, Phase, Standing, Tally
from tandem.runtime.database import constraint, explained
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.local_transaction import CommitNotConfirmed

AGED = {Standing.EXPIRED: Reason.TRANSACTION_EXPIRED, Standing.AHEAD: Reason.TRANSACTION_AHEAD}
"""What an id's age is told as, where nothing was decided for it (R14)."""


def of_tally(tx: Transaction, counted: Tally) -> TandemError:
    """Why the votes don't allow a decision."""
    for reason in (Reason.TRANSACTION_REUSED, Reason.TRANSACTION_EXPIRED, Reason.TRANSACTION_AHEAD):
        if not counted.has(reason):
            continue
        if reason is not Reason.TRANSACTION_REUSED:
            return TransactionExpired(reason, transaction_id=tx.id)
        name, error = next((n, e) for n, e in sorted(counted.refusals.items()) if e.reason is reason)
        return TransactionReused(f"{name}: {error.message}", transaction_id=tx.id, metadata=error.metadata)
    if counted.has(Reason.TRANSACTION_ABORTED):
        return Fenced(transaction_id=tx.id)
    if counted.refusals:
        return Refused(counted.refusals, transaction_id=tx.id)
    waits = [error.retry_after_s for error in counted.passing.values() if error.retry_after_s is not None]
    return Unavailable(
        "; ".join(f"{name}: {error.message}" for name, error in sorted(counted.passing.items())),
        transaction_id=tx.id,
        retry_after_s=max(waits, default=1.0),
        metadata={"reasons": ",".join(sorted({error.reason.value for error in counted.passing.values()}))},
    )


def of_phase(tx: Transaction) -> TandemError | None:
    """What a settled transaction means for its caller; None where it is committed."""
    match tx.phase:
        case Phase.COMMITTED:
            return None
        case Phase.ABORTED:
            return Fenced(transaction_id=tx.id)
        case Phase.REUSED:
            return tx.error
        case _:
            return unknown(tx)


E = TypeVar("E", bound=BaseException | None)


def mark_spent(tx: Transaction, error: E) -> E:
    """An id of the caller's that is aborted is used up: no repeat of it can help, only a new id."""
    if not tx.own_id and tx.phase is Phase.ABORTED and isinstance(error, Fenced | Unavailable):
        error.retry_after_s = None
        error.metadata["repeat_with"] = "a new transaction_id"
    return error


def unknown(tx: Transaction) -> OutcomeUnknown:
    """Nobody can say now."""
    return OutcomeUnknown(
        "the decision log can't be read now: the transaction may have committed", transaction_id=tx.id
    )


def of_failure(txs: Sequence[Transaction], error: BaseException) -> BaseException | None:
    """What to raise after the block, the INSERT or COMMIT failed with `error` and the log has been asked.

    None: everything is committed after all. An interruption stays what it is.
    """
    if not isinstance(error, Exception):
        return error
    violated = constraint(error)
    for tx in txs:
        if tx.phase is Phase.UNKNOWN and CHECKS.get(violated or "") in AGED.values():
            return TransactionExpired(CHECKS[violated or ""], transaction_id=tx.id)
        if tx.phase in (Phase.UNKNOWN, Phase.REUSED):
            return of_phase(tx)
    if all(tx.phase is Phase.COMMITTED for tx in txs):
        return None
    first = next(tx for tx in txs if tx.phase is Phase.ABORTED)
    if not any(tx.sent for tx in txs) or isinstance(error, TandemError):
        return error
    if violated == PRIMARY_KEY:
        return Fenced(transaction_id=first.id)
    match CHECKS.get(violated or ""):
        case None:
            pass
        case Reason.LOCAL_TRANSACTION_ENDED:
            return LocalTransactionEnded(
                "the local transaction was ended inside the block; its own rows may be durable", transaction_id=first.id
            )
        case Reason.NOT_DURABLE:
            return LocalTransactionRefused(
                "synchronous_commit is off in the block: a decision must be on the disk before it is told (R15)",
                reason=Reason.NOT_DURABLE,
            )
        case Reason.WRONG_LOG:
            return Unavailable(
                "its database has another decision log than the coordinator's, or the log was renewed meanwhile",
                transaction_id=first.id,
            )
        case reason:
            return TransactionExpired(reason, transaction_id=first.id)
    known = explained(error)
    if isinstance(error, CommitNotConfirmed) or known.reason in RETRYABLE:
        return Unavailable(known.message, transaction_id=first.id)
    return error
