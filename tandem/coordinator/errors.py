"""What the driver raises. Each carries the `transaction_id`; none says "failed" of what may have succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from tandem.runtime.errors import MAX_VIOLATIONS, Reason, TandemError, Violation

MAX_SAID = 3
"""Participants' own words in a refusal's message."""


class TransactionError(TandemError):
    """Base of what the driver raises."""


class Refused(TransactionError):
    """A participant voted no, for a reason that a repeat does not mend. Nothing was committed.

    reasons: participant → its own error, whole; what the refusal itself says of them is limited (R16).
    """

    def __init__(self, reasons: Mapping[str, TandemError], *, transaction_id: UUID) -> None:
        first = next(iter(reasons.values()))
        violations: list[Violation] = [v for error in reasons.values() for v in error.violations]
        said = [f"{name}: {error.message}" for name, error in sorted(reasons.items())]
        more = [f"and {len(said) - MAX_SAID} more"] if len(said) > MAX_SAID else []
        super().__init__(
            "; ".join(said[:MAX_SAID] + more),
            reason=first.reason,
            transaction_id=transaction_id,
            violations=violations[:MAX_VIOLATIONS],
            metadata={**first.metadata, "participants": ",".join(sorted(reasons))},
        )
        self.reasons = dict(reasons)


class Unavailable(TransactionError):
    """Not committed: a participant, the database or the time was not enough. Repeat with the same request id."""

    def __init__(
        self,
        message: str,
        *,
        transaction_id: UUID | None,
        retry_after_s: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message,
            reason=Reason.UNAVAILABLE,
            transaction_id=transaction_id,
            retry_after_s=retry_after_s,
            metadata=metadata,
        )


class Fenced(TransactionError):
    """Not committed: `aborted` was written before the decision, by whoever found the transaction in doubt too long."""

    def __init__(self, *, transaction_id: UUID) -> None:
        super().__init__(
            "the transaction was aborted before it was decided",
            reason=Reason.FENCED,
            transaction_id=transaction_id,
            retry_after_s=1.0,
        )


class OutcomeUnknown(TransactionError):
    """Committed or not: the decision log could not be read. `finish()` can be repeated; never answer "failed"."""

    def __init__(self, message: str, *, transaction_id: UUID) -> None:
        super().__init__(message, reason=Reason.OUTCOME_UNKNOWN, transaction_id=transaction_id, retry_after_s=1.0)


class TransactionReused(TransactionError):
    """The transaction_id names a transaction with other content. Nothing of it was touched."""

    def __init__(self, message: str, *, transaction_id: UUID, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, reason=Reason.TRANSACTION_REUSED, transaction_id=transaction_id, metadata=metadata)


class TransactionExpired(TransactionError):
    """Not committed: the transaction_id's own time is older than the retention allows, or a day ahead (R14)."""

    def __init__(self, reason: Reason, *, transaction_id: UUID) -> None:
        super().__init__(
            "the transaction_id's own time is too old, or lies in the future",
            reason=reason,
            transaction_id=transaction_id,
        )


class LocalTransactionRefused(TransactionError):
    """The Engine or Session can't carry the commit point (R1). Raised before any RPC."""

    def __init__(self, message: str, *, reason: Reason = Reason.CONFIGURATION) -> None:
        super().__init__(message, reason=reason)


class LocalTransactionOpen(LocalTransactionRefused):
    """A local transaction is open already: it would be open across an RPC. An ORM read opens one, too."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LOCAL_TRANSACTION_OPEN)


class LocalTransactionOwned(TransactionError):
    """Inside the block, BEGIN, COMMIT and ROLLBACK are the driver's (R1). Raise to give up."""

    def __init__(self, call: str) -> None:
        super().__init__(f"{call}() belongs to the driver inside the block: leave the block, or raise to give up")


class LocalTransactionEnded(TransactionError):
    """The block's local transaction was ended under the driver. Never committed; its own rows may be durable."""

    def __init__(self, message: str, *, transaction_id: UUID) -> None:
        super().__init__(message, reason=Reason.LOCAL_TRANSACTION_ENDED, transaction_id=transaction_id)
