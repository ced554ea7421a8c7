"""Recovery: pushes committed decisions that a participant has not acknowledged (R11).

It makes delivery quick and lets the log be purged; what is in doubt would be ended by the sweepers without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Row

from tandem.coordinator.delivery import Delivery
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.tables import decision as d
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.claims import Peers, claim
from tandem.runtime.errors import PAGING, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import debugging, frames, logger, step
from tandem.runtime.tracing import span
from tandem.v1 import transaction_pb2

log = logger("tandem.recovery")

LEASE_S = 5.0
"""For how long a claimed decision is left alone by others; above one delivery."""

DELIVER_S = 2.0
MAX_ROUNDS = 100


class Recovery:
    """`run_once()` takes what is due of one coordinator's decisions and delivers it.

    batch: decisions a claim. clock: wall time in s, for the last-success gauge only.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        batch: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._name = coordinator.name
        self._log = coordinator.log
        self._names = coordinator.participants.names
        self._delivery = Delivery(coordinator.log, coordinator.participants, coordinator.metrics)
        self._metrics = coordinator.metrics
        self._last_success = coordinator.metrics.recovery_last_success.labels(coordinator.name)
        self._batch = batch
        self._clock = clock
        self._peers = Peers()

    def run_once(self) -> int:
        """One run: how many deliveries it made. Raises only if the own database can't serve."""
        probes = self._peers.due_probes()
        # A peer that hangs costs its probe the whole deadline: the others don't wait for that.
        made = self._run_healthy()
        made += self._deliver([(row, (peer,)) for peer in probes for row in self._claim([peer], limit=1, probe=True)])
        if set(probes) - set(self._peers.failing()):
            made += self._run_healthy()
        self._last_success.set(self._clock())
        return made

    def _run_healthy(self) -> int:
        """Everything that is due at participants not known to fail: how many deliveries it made."""
        made = 0
        for _ in range(MAX_ROUNDS):
            healthy = sorted(self._names - set(self._peers.failing()))
            if not healthy:
                break
            rows = self._claim(healthy, limit=self._batch)
            made += self._deliver([(row, healthy) for row in rows])
            if len(rows) < self._batch:
                break
        return made

    def _claim(self, peers: Sequence[str], *, limit: int, probe: bool = False) -> Sequence[Row[Any]]:
        """Takes what is due and waits for one of these peers."""
        waiting_for = sa.cast(sa.literal(list(peers)), ARRAY(sa.Text))
        due = [
            d.c.coordinator == self._name,
            d.c.undelivered != sa.literal_column("'{}'::text[]"),
            d.c.undelivered.overlap(waiting_for),
        ]
        rows = claim(self._log.engine, d, due=due, limit=limit, lease_s=LEASE_S, probe=probe)
        if debugging():
            step(log, "recovering", [TransactionKey(row.coordinator, row.transaction_id) for row in rows])
        failpoint("recovery.after_claim")
        return rows

    def _deliver(self, claimed: Sequence[tuple[Row[Any], Sequence[str]]]) -> int:
        """Delivers each row to those of its peers that are named with it, to all of them at once: how many times."""
        asked: dict[str, list[TransactionKey]] = {}
        for row, peers in claimed:
            for participant in row.undelivered:
                if participant in peers:
                    asked.setdefault(participant, []).append(TransactionKey(row.coordinator, row.transaction_id))
        if not asked:
            return 0
        with span("tandem.recovery", {key for keys in asked.values() for key in keys}):
            answers = self._delivery.deliver(
                asked, by=transaction_pb2.RESOLVED_BY_RECOVERY, until=time.monotonic() + DELIVER_S
            )
        return sum(self._note(participant, some) for participant, some in answers.items())

    def _note(self, participant: str, answers: dict[TransactionKey, TandemError | None]) -> int:
        failed = {key: error for key, error in answers.items() if error is not None}
        made = len(answers) - len(failed)
        self._metrics.recovered.inc(made)
        for reason in {error.reason for error in failed.values()}:
            keys = [key for key, error in failed.items() if error.reason is reason]
            self._metrics.recovery_errors.labels(reason.value).inc(len(keys))
            try:
                self._log.failed(keys, reason.value)
            except DATABASE_ERRORS as error:  # a note for people; somebody else holds the row
                log.warning("reason not noted", exception=frames(error))
        if failed and not made and not any(error.reason in _ROWS_OWN for error in failed.values()):
            self._peers.failed(participant)
            log.warning(
                "participant did not acknowledge",
                participant=participant,
                decisions=len(failed),
                reasons=sorted({error.reason.value for error in failed.values()}),
            )
        elif self._peers.answered(participant):
            self._log.make_due(self._name, participant, LEASE_S)
        return made


_ROWS_OWN = PAGING | {Reason.IN_PROGRESS, Reason.TRANSACTION_AHEAD}
"""Answers about one transaction: the participant itself is well, and its other rows need not wait (R11)."""
