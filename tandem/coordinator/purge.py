"""Forgets what is finished and old in a decision log (R14)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.tables import decision as d
from tandem.coordinator.transaction import Outcome
from tandem.runtime import purge
from tandem.runtime.times import Times

FINISHED = sa.or_(
    d.c.outcome == Outcome.ABORTED.value,
    sa.and_(
        d.c.undelivered == sa.literal_column("'{}'::text[]"),
        d.c.parked == sa.literal_column("'{}'::jsonb"),
    ),
)
"""Aborted; or committed and acknowledged by every participant."""


class Purge:
    """`run_once()` takes one run of it. Any number of them may run."""

    def __init__(self, engine: Engine, times: Times, metrics: CoordinatorMetrics) -> None:
        self._engine = engine
        self._retention_ms = times.check().retention_ms
        self._metrics = metrics

    def run_once(self) -> int:
        """How many decisions were forgotten. Raises only if the own database can't serve."""
        purged = purge.purge(
            self._engine, d, finished=FINISHED, finished_at=d.c.decided_at, retention_ms=self._retention_ms
        )
        self._metrics.purged.inc(purged)
        return purged
