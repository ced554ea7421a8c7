"""A Prepare that needs what another transaction holds pushes it aside, if that one is dead (R10).

Staged once, the local transaction is over; the holders' coordinators are asked; whoever can be is staged again. A
holder that is younger than `push_after` may still have a driver at work: it is asked about, but not fenced.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tandem.participant.participant import Ask, HeldByAnother, Participant, Yes
from tandem.participant.resolver import Outcome, Resolver
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.errors import TandemError
from tandem.runtime.telemetry import debugging, logger, unusual

log = logger("tandem.participant")

MAX_PUSHES = 3
"""How often one Prepare stages again: behind a holder that is gone there may be another."""

BUDGET_S = 1.0
"""For all asking of one Prepare, so that a vote is given well within the driver's deadline."""


def prepare(
    participant: Participant,
    resolver: Resolver,
    asks: Sequence[Ask],
    *,
    staged: Sequence[Yes | TandemError] | None = None,
) -> list[Yes | TandemError]:
    """The vote on each (R6), counted. HELD, with a time to retry after, where a holder is neither dead nor ended.

    staged: what the first staging has come to, where it was made already.
    """
    answers = list(participant.prepare(asks) if staged is None else staged)
    until = time.monotonic() + BUDGET_S
    for _ in range(MAX_PUSHES):
        held = {i: answer.holder for i, answer in enumerate(answers) if isinstance(answer, HeldByAnother)}
        left_s = until - time.monotonic()
        if not held or left_s <= 0:
            break
        for i, holder in held.items():
            unusual(log, "held", [asks[i].key], holder=str(holder))
        fence_after_s = participant.times.push_after_s
        try:
            met = resolver.meet(set(held.values()), by=ResolvedBy.PUSH, fence_after_s=fence_after_s, timeout_s=left_s)
        except DATABASE_ERRORS:
            break  # HELD is what is known; the votes of the others are given, and theirs to have
        again = [i for i, holder in held.items() if met[holder] in (Outcome.COMMITTED, Outcome.ABORTED)]
        if not again:
            break
        for i, answer in zip(again, participant.prepare([asks[i] for i in again]), strict=True):
            answers[i] = answer
    if debugging():
        _tell(asks, answers)
    for answer in answers:
        if isinstance(answer, Yes):
            participant.metrics.votes.labels("yes", "").inc()
        else:
            participant.metrics.votes.labels("no", answer.reason.value).inc()
    return answers


def _tell(asks: Sequence[Ask], answers: Sequence[Yes | TandemError]) -> None:
    for ask, answer in zip(asks, answers, strict=True):
        voted = {"vote": "yes"} if isinstance(answer, Yes) else {"vote": "no", "reason": answer.reason.value}
        log.debug("voted", transaction=str(ask.key), **voted)
