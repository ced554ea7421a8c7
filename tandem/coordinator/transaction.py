"""A transaction as its initiator sees it: phases, votes → may it be decided, and what a log's row tells an asker.

Pure: no I/O, nothing of the transport or the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tandem.runtime.errors import Reason, TandemError


class Phase(StrEnum):
    """Where the driver stands.

    UNKNOWN: the log could not be read; `finish()` may find out. REUSED: the id names somebody else's transaction.
    """

    NEW = "new"
    PREPARED = "prepared"
    DECIDING = "deciding"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"
    REUSED = "reused"


_SETTLED = frozenset({Phase.COMMITTED, Phase.ABORTED, Phase.UNKNOWN, Phase.REUSED})

_NEXT: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: _SETTLED | {Phase.PREPARED},
    Phase.PREPARED: _SETTLED | {Phase.DECIDING},
    Phase.DECIDING: _SETTLED,
    Phase.UNKNOWN: _SETTLED,
    Phase.COMMITTED: frozenset({Phase.COMMITTED}),
    Phase.ABORTED: frozenset({Phase.ABORTED}),
    Phase.REUSED: frozenset({Phase.REUSED}),
}
"""COMMITTED straight from NEW or PREPARED: another driver of the same id has decided."""


def advance(current: Phase, following: Phase) -> Phase:
    """The following phase. AssertionError for a step that the protocol doesn't have: an outcome never changes."""
    assert following in _NEXT[current], f"{current} can't become {following}"
    return following


class Outcome(StrEnum):
    """What the decision log holds."""

    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Decided:
    """A row of the decision log. participants: name → digest of what it was asked to stage."""

    outcome: Outcome
    participants: Mapping[str, bytes] = field(default_factory=dict)
    undelivered: tuple[str, ...] = ()


class Standing(StrEnum):
    """What can be said of an id that has no row."""

    UNDECIDED = "undecided"
    IN_PROGRESS = "in_progress"
    EXPIRED = "expired"
    AHEAD = "ahead"
    WRONG_LOG = "wrong_log"


@dataclass(frozen=True, slots=True)
class Vote:
    """A participant's answer to Prepare: the name and digest it gave, or why it gave none."""

    participant: str = ""
    digest: bytes = b""
    error: TandemError | None = None


RETRYABLE = frozenset(
    {
        Reason.UNAVAILABLE,
        Reason.IN_PROGRESS,
        Reason.IN_DOUBT,
        Reason.DATABASE_UNAVAILABLE,
        Reason.DATABASE_FULL,
        Reason.DEADLINE_PASSED,
        Reason.OVERLOADED,
        Reason.HELD,
    }
)
"""Reasons of a no vote that a later attempt may not meet."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the votes allow. Without any error: the decision may be written."""

    refusals: Mapping[str, TandemError]
    passing: Mapping[str, TandemError]

    @property
    def unanimous(self) -> bool:
        """Whether every participant has voted yes."""
        return not self.refusals and not self.passing

    def has(self, reason: Reason) -> bool:
        """Whether a participant refused for this reason."""
        return any(error.reason is reason for error in self.refusals.values())


def tally(asked: Mapping[str, bytes], votes: Mapping[str, Vote]) -> Tally:
    """Counts the votes (R6): a yes counts only with the name and the digest that the decision will store.

    asked: participant → digest of what it was asked to stage.
    """
    refusals: dict[str, TandemError] = {}
    passing: dict[str, TandemError] = {}
    for name, digest in asked.items():
        vote = votes.get(name) or Vote(error=TandemError("no answer", reason=Reason.UNAVAILABLE))
        if vote.error is not None:
            (passing if vote.error.reason in RETRYABLE else refusals)[name] = vote.error
        elif (vote.participant, vote.digest) != (name, digest):
            refusals[name] = TandemError(
                "the vote came from another participant or was for other content", reason=Reason.WRONG_VOTE
            )
    return Tally(refusals, passing)


def answer_for(decided: Decided, asker: str, digest: bytes) -> Outcome:
    """What a row of the log means for one asker: it takes part only with what the decision lists for it (R4)."""
    if decided.outcome is Outcome.COMMITTED and decided.participants.get(asker) == digest:
        return Outcome.COMMITTED
    return Outcome.ABORTED
