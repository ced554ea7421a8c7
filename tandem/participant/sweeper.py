"""Ends what is in doubt, by asking for the decision and never by the clock alone (R9).

The clock only says when to ask: COMMITTED rolls forward, ABORTED discards, anything else leaves the row, counts it and
comes back to it. Any number of sweepers may run (R11).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.resolver import InDoubt, Outcome, Resolver, in_doubt
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.claims import Peers, claim
from tandem.runtime.database import ASIDE, KEY_COLUMNS, local_transaction, records, seconds
from tandem.runtime.errors import CONTRADICTIONS, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import logger

log = logger("tandem.sweeper")

LEASE_S = 5.0
"""For how long a claimed row is left alone by others; above one Resolve and its application."""

MAX_ROUNDS = 100
"""Batches in one run; what is left waits for the next."""


_FOR_A_PERSON = {
    **dict.fromkeys(CONTRADICTIONS, "it was forced, and the decision is another"),
    Reason.PUBLISHED_NOT_STAGED: "it is committed, and not all that it staged is there: restore it, or force it",
}
"""Answers that asking again can't change (R5)."""


class Sweeper:
    """`run_once()` takes what is due and ends it.

    batch: transactions a claim. clock: wall time in s, for the last-success gauge only.
    """

    def __init__(
        self,
        engine: Engine,
        resolver: Resolver,
        metrics: ParticipantMetrics,
        *,
        batch: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._resolver = resolver
        self._metrics = metrics
        self._batch = batch
        self._clock = clock
        self._peers = Peers()
        self._pieces: dict[str, int] = {}

    def run_once(self) -> int:
        """One sweep: how many transactions it ended. Raises only if the own database can't serve."""
        probes = self._peers.due_probes()
        # A peer that hangs costs its probe the whole deadline: the others don't wait for that.
        ended = self._sweep_healthy()
        for coordinator in probes:
            ended += self._sweep([t.c.coordinator == coordinator], limit=1, probe=True)[1]
        if set(probes) - set(self._peers.failing()):
            ended += self._sweep_healthy()
        self._metrics.sweep_last_success.set(self._clock())
        return ended

    def _sweep_healthy(self) -> int:
        """Everything that is due and whose coordinator is not known to fail: how many it ended."""
        ended = 0
        for _ in range(MAX_ROUNDS):
            healthy = t.c.coordinator.not_in(self._peers.failing())
            claimed, some = self._sweep([healthy], limit=self._batch)
            ended += some
            if claimed < self._batch:
                break
        return ended

    def _sweep(self, due: Sequence[sa.ColumnElement[bool]], *, limit: int, probe: bool = False) -> tuple[int, int]:
        """Claims once and settles what was claimed: (claimed, ended)."""
        waiting = [~t.c.confirmed, t.c.parked.is_(None), *due]
        rows = claim(self._engine, t, due=waiting, limit=limit, lease_s=LEASE_S, probe=probe)
        self._metrics.sweep_claimed.inc(len(rows))
        failpoint("sweeper.after_claim")
        batches: dict[str, list[InDoubt]] = defaultdict(list)
        for row in rows:
            batches[row.coordinator].append(in_doubt(row))
        ended = 0
        for coordinator, batch in sorted(batches.items()):
            ended += self._settle_all(coordinator, batch)
        return len(rows), ended

    def _settle_all(self, coordinator: str, batch: Sequence[InDoubt]) -> int:
        """In as large pieces as this coordinator copes with: half as large after a failure, twice after a success."""
        ended = 0
        left = list(batch)
        while left:
            size = self._pieces.get(coordinator, self._batch)
            piece, left = left[:size], left[size:]
            settled = self._settle(coordinator, piece)
            if settled is None:
                self._pieces[coordinator] = max(size // 2, 1)
                break  # its lease runs out; what was not asked for yet is probed with the rest
            if len(piece) == size:
                self._pieces[coordinator] = min(2 * size, self._batch)
            ended += settled
        return ended

    def _settle(self, coordinator: str, batch: Sequence[InDoubt]) -> int | None:
        """Asks and applies: how many it ended; None if the coordinator can't be asked."""
        try:
            answers = self._resolver.settle(batch, fence=True, by=ResolvedBy.SWEEPER)
        except TandemError as error:
            self._peers.failed(coordinator)
            self._left([item.key for item in batch], error.reason.value)
            log.warning("coordinator can't be asked", coordinator=coordinator, reason=error.reason.value)
            return None
        left: dict[str, list[TransactionKey]] = defaultdict(list)
        for key, answer in answers.items():
            if answer is Outcome.EXPIRED:
                self._park(key, Outcome.EXPIRED.value, "no decision, and its id has expired")
            if isinstance(answer, TandemError) and answer.reason in _FOR_A_PERSON:
                self._park(key, answer.reason.value, _FOR_A_PERSON[answer.reason])
            if isinstance(answer, TandemError):
                left[answer.reason.value].append(key)
            elif answer not in (Outcome.COMMITTED, Outcome.ABORTED):
                left[answer.value.upper()].append(key)
        for reason, keys in left.items():
            self._left(keys, reason)
        if self._peers.answered(coordinator):
            self._make_due(coordinator)
        return len(answers) - sum(map(len, left.values()))

    def _left(self, keys: Sequence[TransactionKey], reason: str) -> None:
        """Leaves them for later, with the reason."""
        self._metrics.sweep_errors.labels(reason).inc(len(keys))
        asked = records("keys", KEY_COLUMNS)
        ours = (t.c.coordinator == asked.c.coordinator, t.c.transaction_id == asked.c.transaction_id)
        self._mark(*ours, last_error=reason, keys=[key.row() for key in sorted(keys)])

    def _park(self, key: TransactionKey, reason: str, why: str) -> None:
        """Takes it out of automatic work: only a person can say what happened, or put it right (R4, R5)."""
        ours = (t.c.coordinator == key.coordinator, t.c.transaction_id == key.transaction_id)
        if self._mark(*ours, parked=reason, next_attempt_at=None):
            log.error("parked", transaction=str(key), reason=reason, why=why)

    def _make_due(self, coordinator: str) -> None:
        """A peer that answers again: what waited for it is due now (R11)."""
        soon = t.c.next_attempt_at.between(sa.func.now(), sa.func.now() + seconds(LEASE_S))
        self._mark(t.c.coordinator == coordinator, t.c.attempts > 0, soon, next_attempt_at=sa.func.now())

    def _mark(self, *which: sa.ColumnElement[bool], keys: Sequence[object] = (), **values: object) -> int:
        """Changes rows in doubt, and waits for none: one that another is working on is left to it (R11)."""
        free = (
            sa.select(t.c.coordinator, t.c.transaction_id)
            .where(~t.c.confirmed, *which)
            .with_for_update(of=t, skip_locked=True)
            .cte("free")
        )
        statement = (
            sa.update(t)
            .where(t.c.coordinator == free.c.coordinator, t.c.transaction_id == free.c.transaction_id)
            .values(**values)
        )
        with local_transaction(self._engine, ASIDE) as connection:
            return connection.execute(statement, {"keys": keys} if keys else {}).rowcount
