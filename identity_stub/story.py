"""One signup's story on both sides, as values, and what a person is told of it. Pure: no I/O.

Nothing here is personal: ids, times, states, reasons. What is the same for every initiator is in `runtime/telling.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from identity_stub import users
from identity_stub.requests import Stored
from tandem.runtime.telling import BothSides, Branch, Decision, at, decided_aborted, took, without_decision

__all__ = ["Branch", "Decision", "Story"]


@dataclass(frozen=True, slots=True)
class Story:
    """What is known.

    began_at: the transaction id's own time. expired: that is longer ago than decisions are kept. now: the database's
    clock (R13). event_id: of the attempt or event that asked for the profile, where there was no transaction;
    profile_status and profile_reason: what its account shows then.
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
    event_id: UUID | None = None
    profile_status: str = ""
    profile_reason: str = ""

    def sentences(self) -> list[str]:
        """The story, told."""
        both = BothSides(self.now, self.decision, self.branches, has_rows=self.request is not None)
        left = () if self.transaction_id is None else both.left()
        return [*self._beginning(), *self._decided(), *self._asked(), *both.sides(), *left]

    def _beginning(self) -> Iterator[str]:
        yield self.subject
        if self.request is not None and self.request.transaction_id is None:
            yield f"No other service took part: it was written here at {at(self.request.created_at)}, and that is all."
        if self.transaction_id is not None and self.began_at is not None:
            name = f"{'It' if self.request is None else 'Its transaction'} is {self.coordinator}/{self.transaction_id}"
            yield f"{name}, begun at {at(self.began_at)} by the initiator's clock."

    def _asked(self) -> Iterator[str]:
        if self.event_id is None or self.request is None:
            return
        yield (
            f"It was committed here at {at(self.request.created_at)}, without a transaction: its profile comes by"
            f" itself, in the attempt or event {self.event_id}."
        )
        match self.profile_status:
            case users.PENDING:
                yield "The profile is on its way: the event waits in the outbox or in a topic, or its answer does."
            case users.REJECTED:
                yield f"Profiles has refused it ({self.profile_reason}): a person has to give other facts."
            case users.ABSENT:
                yield "Profiles has none yet: the first update makes it."
            case _:
                yield "Profiles has made it. Nothing is left to do."

    def _decided(self) -> Iterator[str]:
        if self.transaction_id is None:
            return
        decision = self.decision
        if decision is None:
            if self.request is None:
                yield without_decision(self.expired)
            else:
                yield (
                    f"It was committed at {at(self.request.created_at)}, or its account would not be here. Its "
                    "decision is no longer in the log: finished ones are purged in time."
                )
        elif decision.outcome == "committed":
            after = "" if self.began_at is None else f", {took(decision.decided_at - self.began_at)} after it began"
            rows = "in the same local commit as its account" if self.request else "in the initiator's local commit"
            yield f"It was decided at {at(decision.decided_at)}{after}: committed, {rows}."
        else:
            yield decided_aborted(decision)
