"""One signup's story on both sides, as values, and what a person is told of it. Pure: no I/O.

Nothing here is personal: ids, times, states and reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from identity_stub.requests import Stored

BROUGHT_BY = {
    "coordinator": "the initiator's own driver",
    "recovery": "recovery",
    "sweeper": "the sweeper there",
    "reader": "a reader that met it",
    "push": "another transaction that needed the same",
    "operator": "an operator, by force",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision log's row."""

    outcome: str
    decided_at: datetime
    attempts: int
    next_attempt_at: datetime | None
    last_error: str


@dataclass(frozen=True, slots=True)
class Branch:
    """One participant's side.

    listed: the decision lists it. acknowledged, parked: what the log says of it. trouble: why it could not be asked; ""
    where it was. state: "prepared", "committed", "aborted"; "" where it knows nothing. tombstone: an Abort came before
    anything was staged. confirmed: the coordinator's own decision stands behind the state.
    """

    participant: str
    listed: bool = False
    acknowledged: bool = False
    parked: str = ""
    trouble: str = ""
    state: str = ""
    tombstone: bool = False
    rows: int = 0
    confirmed: bool = True
    prepared_at: datetime | None = None
    resolved_at: datetime | None = None
    resolved_by: str = ""
    asks_at: datetime | None = None
    parked_there: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What is known.

    began_at: the transaction id's own time. expired: that is longer ago than decisions are kept. now: the database's
    clock (R13).
    """

    coordinator: str
    now: datetime
    subject: str
    request: Stored | None = None
    transaction_id: UUID | None = None
    began_at: datetime | None = None
    expired: bool = False
    decision: Decision | None = None
    branches: Sequence[Branch] = ()

    def sentences(self) -> list[str]:
        """The story, told."""
        return [*self._beginning(), *self._decided(), *self._sides(), *self._left()]

    def _beginning(self) -> Iterator[str]:
        yield self.subject
        if self.request is not None and self.request.transaction_id is None:
            yield f"No other service took part: it was written here at {_at(self.request.created_at)}, and that is all."
        if self.transaction_id is not None and self.began_at is not None:
            name = f"{'It' if self.request is None else 'Its transaction'} is {self.coordinator}/{self.transaction_id}"
            yield f"{name}, begun at {_at(self.began_at)} by the initiator's clock."

    def _decided(self) -> Iterator[str]:
        if self.transaction_id is None:
            return
        decision = self.decision
        if decision is None:
            if self.request is None and self.expired:
                yield "Its id is older than decisions are kept: if there was one, it has been purged."
            elif self.request is None:
                yield "No decision was written for it: it is not committed."
            else:
                yield (
                    f"It was committed at {_at(self.request.created_at)}, or its account would not be here. Its "
                    "decision is no longer in the log: finished ones are purged in time."
                )
        elif decision.outcome == "committed":
            after = "" if self.began_at is None else f", {_took(decision.decided_at - self.began_at)} after it began"
            rows = "in the same local commit as its account" if self.request else "in the initiator's local commit"
            yield f"It was decided at {_at(decision.decided_at)}{after}: committed, {rows}."
        else:
            yield (
                f"It was decided at {_at(decision.decided_at)}: aborted, so that it can never commit. That is written "
                "by its driver after a failure, or for whoever finds it in doubt for too long."
            )

    def _sides(self) -> Iterator[str]:
        for branch in self.branches:
            yield self._side(branch)
            if self._contradicts(branch):
                yield f"That contradicts what is known here: a person must look at {branch.participant}."

    def _side(self, b: Branch) -> str:
        name, rows = b.participant, f"{b.rows} row{'' if b.rows == 1 else 's'}"
        brought = f"the outcome was brought by {BROUGHT_BY.get(b.resolved_by, 'somebody unknown')}"
        if b.trouble:
            return f"{name} could not be asked what it holds ({b.trouble})."
        if b.tombstone:
            return f"{name} was told to abort it before anything was staged; {brought}."
        if b.state == "committed" and b.prepared_at and b.resolved_at:
            took = _took(b.resolved_at - b.prepared_at)
            return f"{name} staged {rows} at {_at(b.prepared_at)} and made them visible {took} later; {brought}."
        if b.state == "aborted" and b.prepared_at and b.resolved_at:
            took = _took(b.resolved_at - b.prepared_at)
            return f"{name} staged {rows} at {_at(b.prepared_at)} and discarded them {took} later; {brought}."
        if b.state == "prepared" and b.prepared_at:
            since = f"since {_at(b.prepared_at)} ({_took(self.now - b.prepared_at)})"
            return f"{name} holds {rows} prepared {since}: promised, and invisible still."
        if b.acknowledged:
            return f"{name} has acknowledged it and no longer knows it: finished ones are purged in time."
        return f"{name} knows nothing of it."

    def _contradicts(self, b: Branch) -> bool:
        if b.trouble:
            return False
        if self.decision is None:
            return self.request is not None and b.state in ("prepared", "aborted")
        if self.decision.outcome == "committed":
            return b.state == "aborted" or (b.listed and not b.state and not b.acknowledged)
        return b.state == "committed"

    def _left(self) -> Iterator[str]:
        if self.transaction_id is None:
            return
        left = [sentence for branch in self.branches for sentence in self._left_at(branch)]
        if left:
            yield from left
        elif any(branch.trouble and not branch.acknowledged for branch in self.branches):
            yield "Whether anything is left to do can be said when it can be asked."
        elif not any(self._contradicts(branch) for branch in self.branches):
            yield "Nothing is left to do."

    def _left_at(self, b: Branch) -> Iterator[str]:
        """What is left to do at one participant, and who will do it."""
        name, decision = b.participant, self.decision
        if b.parked:
            yield f"The delivery to {name} is parked ({b.parked}): automatic work on it has ended, a person must look."
        if b.parked_there:
            yield f"{name} has parked it ({b.parked_there}): its sweeper leaves it alone, a person must look."
        if b.state in ("committed", "aborted") and not b.confirmed:
            yield f"An operator has forced this at {name}; its sweeper asks until the coordinator has answered."
        if decision is not None and decision.outcome == "committed":
            if b.listed and not b.acknowledged and not b.parked:
                done = " It is visible there already, so that changes nothing." if b.state == "committed" else ""
                yield f"{name} has not acknowledged it: recovery delivers it {self._again(decision)}.{done}"
            if b.state == "prepared" and not b.parked_there:
                by = f"so does the sweeper there, {self._due(b)}"
                yield f"A reader who meets it there makes it visible at once; {by}."
        elif b.state == "prepared" and not b.parked_there:
            undecided = ": if it is undecided still, it is aborted" if decision is None else ""
            yield f"The sweeper there asks for the decision {self._due(b)} and ends it{undecided}."

    def _again(self, decision: Decision) -> str:
        due = decision.next_attempt_at
        when = "as soon as it runs" if due is None or due <= self.now else f"at {_at(due)} at the latest"
        tried = f" ({decision.attempts} attempts so far)" if decision.attempts else ""
        return when + (f"; the last attempt failed: {decision.last_error}{tried}" if decision.last_error else tried)

    def _due(self, b: Branch) -> str:
        """When a participant's sweeper asks."""
        return "with its next sweep" if b.asks_at is None or b.asks_at <= self.now else f"from {_at(b.asks_at)} on"


def _at(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S.") + f"{when.microsecond // 1000:03} UTC"


def _took(span: timedelta) -> str:
    """A span as people say it: ms below a second, then s, minutes, hours, days."""
    s = max(span.total_seconds(), 0.0)
    if s < 1:
        return f"{s * 1000:.0f} ms"
    if s < 120:
        return f"{s:.1f} s"
    for unit, size in (("minutes", 60), ("hours", 3600)):
        if s < 120 * size or (unit == "hours" and s < 48 * size):
            return f"{s / size:.0f} {unit}"
    return f"{s / 86400:.0f} days"
