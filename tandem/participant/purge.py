"""Forgets what is finished and old at a participant (R14)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import State
from tandem.runtime import purge
from tandem.runtime.times import Times

FINISHED = sa.and_(t.c.state != State.PREPARED.value, t.c.confirmed, t.c.parked.is_(None))
"""Committed or aborted, and the coordinator's own decision stands behind it."""


class Purge:
    """`run_once()` takes one run of it. Any number of them may run."""

    def __init__(self, engine: Engine, times: Times, metrics: ParticipantMetrics) -> None:
        self._engine = engine
        self._retention_ms = times.check().retention_ms
        self._metrics = metrics

    def run_once(self) -> int:
        """How many transactions were forgotten. Raises only if the own database can't serve."""
        purged = purge.purge(
            self._engine, t, finished=FINISHED, finished_at=t.c.resolved_at, retention_ms=self._retention_ms
        )
        self._metrics.purged.inc(purged)
        return purged
