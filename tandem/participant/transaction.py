"""A transaction as a participant sees it: its states and what each message does to them (design §2, the table).

Pure: no I/O, nothing of the transport or the database. `participant.py` does what a verdict says, and the statements
guard each transition a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from tandem.runtime.errors import Reason
from tandem.runtime.identifiers import Age


class State(StrEnum):
    """Where a transaction stands here; without a row it is unknown."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"


class ResolvedBy(StrEnum):
    """Who brought an outcome (design §6, `via`)."""

    COORDINATOR = "coordinator"
    RECOVERY = "recovery"
    SWEEPER = "sweeper"
    READER = "reader"
    PUSH = "push"
    OPERATOR = "operator"


class Act(StrEnum):
    """What is to be done; ANSWER_OK means that it has been done before."""

    STAGE = "stage"
    PUBLISH = "publish"
    DISCARD = "discard"
    TOMBSTONE = "tombstone"
    ANSWER_OK = "ok"


@dataclass(frozen=True, slots=True)
class Held:
    """What a participant holds for a transaction."""

    state: State
    log_id: UUID | None
    digests: bytes


Verdict = Act | Reason
"""An act, or the reason of a refusal."""


def on_prepare(held: Held | None, age: Age, *, log_id: UUID, digests: bytes) -> Verdict:
    """Prepare. A yes vote is a promise, so its repeat is the same yes; other content under its name is refused (R6)."""
    if held is None:
        return _unless_too_old_or_ahead(age, Act.STAGE)
    if held.state is State.ABORTED:
        return Reason.TRANSACTION_ABORTED
    if held.digests != digests or held.log_id != log_id:
        return Reason.TRANSACTION_REUSED
    return Act.ANSWER_OK


def on_commit(held: Held | None, age: Age) -> Verdict:
    """Commit. Where nothing was promised or it was taken back, two sides contradict each other (R5)."""
    if held is None:
        return _unless_too_old_or_ahead(age, Reason.TRANSACTION_UNKNOWN)
    if held.state is State.ABORTED:
        return Reason.ALREADY_ABORTED
    return Act.PUBLISH if held.state is State.PREPARED else Act.ANSWER_OK


def on_abort(held: Held | None, age: Age) -> Verdict:
    """Abort. It may come before its Prepare: the tombstone refuses that one when it arrives.

    An expired id needs none: its Prepare is refused for its age. An id from the future is refused: without a row, its
    Prepare would be accepted later.
    """
    if held is None:
        if age is Age.AHEAD:
            return Reason.TRANSACTION_AHEAD
        return Act.ANSWER_OK if age is Age.EXPIRED else Act.TOMBSTONE
    if held.state is State.COMMITTED:
        return Reason.ALREADY_COMMITTED
    return Act.DISCARD if held.state is State.PREPARED else Act.ANSWER_OK


def _unless_too_old_or_ahead(age: Age, verdict: Verdict) -> Verdict:
    if age is Age.EXPIRED:
        return Reason.TRANSACTION_EXPIRED
    return Reason.TRANSACTION_AHEAD if age is Age.AHEAD else verdict
