"""The errors of Tandem, free of transport and of driver messages.

Every message here is written by us and may be shown to a client and logged: it never holds a value that a user sent.
`status.py` turns an error into a gRPC status and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class Reason(StrEnum):
    """The machine-readable reason of an error (`google.rpc.ErrorInfo.reason`, domain "tandem")."""

    # What was sent is wrong.
    INVALID_REQUEST = "INVALID_REQUEST"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    DUPLICATE_IN_BATCH = "DUPLICATE_IN_BATCH"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    COORDINATOR_UNKNOWN = "COORDINATOR_UNKNOWN"
    PARTICIPANT_UNKNOWN = "PARTICIPANT_UNKNOWN"

    # The protocol (design §2). The three contradictions (R5) are CONTRADICTIONS below.
    TRANSACTION_UNKNOWN = "TRANSACTION_UNKNOWN"
    TRANSACTION_REUSED = "TRANSACTION_REUSED"
    TRANSACTION_ABORTED = "TRANSACTION_ABORTED"
    TRANSACTION_EXPIRED = "TRANSACTION_EXPIRED"
    TRANSACTION_AHEAD = "TRANSACTION_AHEAD"
    ALREADY_COMMITTED = "ALREADY_COMMITTED"
    ALREADY_ABORTED = "ALREADY_ABORTED"
    IN_PROGRESS = "IN_PROGRESS"
    IN_DOUBT = "IN_DOUBT"
    WRONG_LOG = "WRONG_LOG"
    UNDECIDED = "UNDECIDED"
    WRONG_VOTE = "WRONG_VOTE"
    PUBLISHED_NOT_STAGED = "PUBLISHED_NOT_STAGED"

    # What the driver tells its caller.
    REFUSED = "REFUSED"
    FENCED = "FENCED"
    UNAVAILABLE = "UNAVAILABLE"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    LOCAL_TRANSACTION_OPEN = "LOCAL_TRANSACTION_OPEN"
    LOCAL_TRANSACTION_ENDED = "LOCAL_TRANSACTION_ENDED"
    NOT_DURABLE = "NOT_DURABLE"

    # Entities.
    ALREADY_EXISTS = "ALREADY_EXISTS"
    HELD = "HELD"
    NOT_FOUND = "NOT_FOUND"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    REQUEST_REUSED = "REQUEST_REUSED"
    NOT_ALLOWED = "NOT_ALLOWED"
    UNAUTHENTICATED = "UNAUTHENTICATED"

    # The machine room.
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    DATABASE_FULL = "DATABASE_FULL"
    OVERLOADED = "OVERLOADED"
    SCHEMA_UNKNOWN = "SCHEMA_UNKNOWN"
    CONFIGURATION = "CONFIGURATION"
    INTERNAL = "INTERNAL"


CONTRADICTIONS = frozenset({Reason.TRANSACTION_UNKNOWN, Reason.ALREADY_COMMITTED, Reason.ALREADY_ABORTED})
"""Reasons that two sides can't both be right about (R5): counted, paged, and the delivery is parked."""

PAGING = CONTRADICTIONS | {Reason.TRANSACTION_EXPIRED, Reason.PUBLISHED_NOT_STAGED}
"""Answers to Commit or Abort that no repeat can change (design §2, all that the table marks ‡; R7): the same."""

MAX_VIOLATIONS = 20
"""Of one error, and positions that it names: it must fit the trailer of an answer, 8 KB for most clients (R16)."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong: its path in the request and what it must be."""

    field: str
    description: str
    rule: str = ""

    def below(self, parent: str) -> Violation:
        """The same violation, seen from the message that holds `parent`."""
        return Violation(f"{parent}.{self.field}" if self.field else parent, self.description, self.rule)


class TandemError(Exception):
    """Base of every error: a reason, a sentence, and what helps the caller.

    retry_after_s: seconds after which a repeat may succeed; None where a repeat does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason = Reason.INTERNAL,
        transaction_id: UUID | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.transaction_id = transaction_id
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason.value}: {self.message})"


class InvalidRequest(TandemError):
    """The request's shape is wrong; `violations` name the fields."""

    def __init__(
        self, violations: Sequence[Violation], *, message: str | None = None, reason: Reason = Reason.INVALID_REQUEST
    ) -> None:
        super().__init__(
            message or "; ".join(f"{v.field}: {v.description}" for v in violations[:5]),
            reason=reason,
            violations=violations,
        )
        self._own_message = message

    def below(self, parent: str) -> InvalidRequest:
        """The same error, seen from the message that holds `parent`."""
        violations = [violation.below(parent) for violation in self.violations]
        return InvalidRequest(violations, message=self._own_message, reason=self.reason)


class DatabaseError(TandemError):
    """The database can't serve; nothing of what was asked is lost, a repeat may succeed."""


class ConfigurationError(TandemError):
    """The process must not start like this; the message says what to change or to run."""

    def __init__(self, message: str, *, reason: Reason = Reason.CONFIGURATION) -> None:
        super().__init__(message, reason=reason)
