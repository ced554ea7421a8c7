"""Ends what is in doubt, by asking for the decision and never by the clock alone (R9).

The clock only says when to ask: COMMITTED rolls forward, ABORTED discards, anything else leaves the row, counts it and
comes back to it. Any number of sweepers may run (R11).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.resolver import InDoubt, Outcome, Resolver, in_doubt
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import ResolvedBy
from tandem.runtime.claims import Peers, claim, make_due
from tandem.runtime.database import ASIDE
from tandem.runtime.errors import CONTRADICTIONS, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.records import KEY_COLUMNS, key_arrays, records
from tandem.runtime.telemetry import debugging, logger, step, unusual
from tandem.runtime.tracing import span

log = logger("tandem.sweeper")

LEASE_S = 5.0
"""For how long a claimed row is left alone by others; above one Resolve and its application."""

PROBE_S = 1.5
"""For one question to a coordinator that did not answer the last time: what is due of others waits for it."""

MAX_ROUNDS = 100
"""Batches in one run; what is left waits for the next."""

LANES = 3
"""Batches under way at the same time where much is due: while one is asked for, another is claimed or applied."""


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
        batch: int = 1000,
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
        probing = [row for peer in probes for row in self._claim([t.c.coordinator == peer], limit=1, probe=True)]
        ended += self._settle(probing, timeout_s=PROBE_S)
        if set(probes) - set(self._peers.failing()):
            ended += self._sweep_healthy()
        self._metrics.sweep_last_success.set(self._clock())
        return ended

    def _sweep_healthy(self) -> int:
        """Everything that is due and whose coordinator is not known to fail: how many it ended."""
        ended, more = self._sweep_batch()
        if more:
            with ThreadPoolExecutor(LANES, thread_name_prefix="sweep") as lanes:
                ended += sum(lanes.map(lambda _: self._sweep_batches(), range(LANES)))
        return ended

    def _sweep_batches(self) -> int:
        ended = 0
        for _ in range(MAX_ROUNDS // LANES):
            some, more = self._sweep_batch()
            ended += some
            if not more:
                break
        return ended

    def _sweep_batch(self) -> tuple[int, bool]:
        """One batch: how many of it were ended, and whether there may be more."""
        claimed = self._claim([t.c.coordinator.not_in(self._peers.failing())], limit=self._batch)
        return self._settle(claimed), len(claimed) == self._batch

    def _claim(self, due: Sequence[sa.ColumnElement[bool]], *, limit: int, probe: bool = False) -> Sequence[Row[Any]]:
        """Takes what is due."""
        waiting = [~t.c.confirmed, t.c.parked.is_(None), *due]
        rows = claim(self._engine, t, due=waiting, limit=limit, lease_s=LEASE_S, probe=probe)
        self._metrics.sweep_claimed.inc(len(rows))
        if debugging():
            step(log, "sweeping", [TransactionKey(row.coordinator, row.transaction_id) for row in rows])
        failpoint("sweeper.after_claim")
        return rows

    def _settle(self, rows: Sequence[Row[Any]], *, timeout_s: float = math.inf) -> int:
        """Asks all coordinators at once, each in as large pieces as it copes with; how many were ended.

        A piece is half as large after a failure, and twice as large after a success.
        """
        left: dict[str, list[InDoubt]] = defaultdict(list)
        for row in rows:
            left[row.coordinator].append(in_doubt(row))
        if not left:
            return 0
        with span("tandem.sweep", [item for batch in left.values() for item in batch]):
            return self._ask(left, timeout_s)

    def _ask(self, left: dict[str, list[InDoubt]], timeout_s: float) -> int:
        ended = 0
        while left:
            pieces = {peer: batch[: self._pieces.get(peer, self._batch)] for peer, batch in left.items()}
            for peer, piece, answers in self._resolver.settle(pieces, by=ResolvedBy.SWEEPER, timeout_s=timeout_s):
                if isinstance(answers, TandemError):
                    self._can_not_ask(peer, piece, answers)
                    del left[peer]  # their lease runs out; what was not asked for yet is probed with the rest
                    continue
                if len(piece) == self._pieces.get(peer, self._batch):
                    self._pieces[peer] = min(2 * len(piece), self._batch)
                ended += self._note(peer, answers)
                left[peer] = left[peer][len(piece) :]
            left = {peer: batch for peer, batch in left.items() if batch}
        return ended

    def _can_not_ask(self, coordinator: str, batch: Sequence[InDoubt], error: TandemError) -> None:
        self._pieces[coordinator] = max(len(batch) // 2, 1)
        self._peers.failed(coordinator)
        self._left([item.key for item in batch], error.reason.value, tell=step)
        log.warning("coordinator can't be asked", coordinator=coordinator, reason=error.reason.value)

    def _note(self, coordinator: str, answers: Mapping[TransactionKey, Outcome | TandemError]) -> int:
        """Writes down what could not be ended, and why; how many were."""
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
            waiting = [~t.c.confirmed, t.c.coordinator == coordinator]
            make_due(self._engine, t, waiting=waiting, lease_s=LEASE_S)
        return len(answers) - sum(map(len, left.values()))

    def _left(self, keys: Sequence[TransactionKey], reason: str, *, tell: Callable[..., None] = unusual) -> None:
        """Leaves them for later, with the reason."""
        tell(log, "left in doubt", keys, reason=reason)
        self._metrics.sweep_errors.labels(reason).inc(len(keys))
        asked = records("keys", KEY_COLUMNS)
        ours = (t.c.coordinator == asked.c.coordinator, t.c.transaction_id == asked.c.transaction_id)
        self._mark(*ours, last_error=reason, keys=sorted(keys))

    def _park(self, key: TransactionKey, reason: str, why: str) -> None:
        """Takes it out of automatic work: only a person can say what happened, or put it right (R4, R5)."""
        ours = (t.c.coordinator == key.coordinator, t.c.transaction_id == key.transaction_id)
        if self._mark(*ours, parked=reason, next_attempt_at=None):
            log.error("parked", transaction=str(key), reason=reason, why=why)

    def _mark(self, *which: sa.ColumnElement[bool], keys: Sequence[TransactionKey] = (), **values: object) -> int:
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
            return connection.execute(statement, key_arrays("keys", keys) if keys else {}).rowcount
