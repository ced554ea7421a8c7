"""What a participant counts. Nothing here has an id or a name of a person in a label."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from tandem.participant.tables import prepared_transaction as t
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.database import ASIDE
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.participant.metrics")


class ParticipantMetrics:
    """The counters of one participant, in a registry of the process's choice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.votes = Counter("tandem_votes", "Votes given, by vote and reason.", ["vote", "reason"], registry=registry)
        self.outcomes = Counter(
            "tandem_outcomes", "Outcomes applied, by outcome and who brought it.", ["outcome", "via"], registry=registry
        )
        self.contradictions = Counter(
            "tandem_contradictions",
            "Two sides that can't both be right (R5). Any is a page.",
            ["reason"],
            registry=registry,
        )
        self.sweep_last_success = Gauge(
            "tandem_sweep_last_success_timestamp_seconds",
            "When the sweeper last ran to its end, in s since 1970; 0 before the first time.",
            registry=registry,
        )
        self.sweep_claimed = Counter("tandem_sweep_claimed", "Transactions the sweeper took up.", registry=registry)
        self.sweep_errors = Counter(
            "tandem_sweep_errors", "Transactions the sweeper had to leave, by reason.", ["reason"], registry=registry
        )
        self.purged = Counter("tandem_purged", "Finished transactions that were forgotten (R14).", registry=registry)


class PreparedCollector(Collector):
    """Two gauges read from the database when they are asked for: right after a restart and over all replicas.

    The age is read by the database's clock and given as a timestamp (R13).
    """

    def __init__(self, engine: Engine, coordinators: Iterable[str]) -> None:
        self._engine = engine
        self._coordinators = tuple(coordinators)

    def collect(self) -> Iterable[Metric]:
        """The gauges; none of them where the database can't be asked, so that an alert can see the absence."""
        prepared = GaugeMetricFamily(
            "tandem_prepared_transactions", "Transactions prepared and not resolved.", labels=["coordinator"]
        )
        oldest = GaugeMetricFamily(
            "tandem_oldest_prepared_timestamp_seconds",
            "When the oldest prepared transaction was prepared, in s since 1970; the present time where there is none.",
        )
        statement = (
            sa.select(t.c.coordinator, sa.func.count().label("n"), sa.func.min(t.c.prepared_at).label("oldest"))
            .where(~t.c.confirmed, t.c.state == "prepared")
            .group_by(t.c.coordinator)
        )
        try:
            with local_transaction(self._engine, ASIDE) as connection:
                rows = connection.execute(statement).all()
                now = connection.execute(sa.select(sa.func.now())).scalar_one()
        except DATABASE_ERRORS as error:
            log.warning("gauges not read", exception=frames(error))
            return []
        counts = dict.fromkeys(self._coordinators, 0) | {row.coordinator: row.n for row in rows}
        for coordinator, count in sorted(counts.items()):
            prepared.add_metric([coordinator], count)
        oldest.add_metric([], min((row.oldest for row in rows), default=now).timestamp())
        return [prepared, oldest]
