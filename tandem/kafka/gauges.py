"""What an outbox holds, as metrics. Nothing here has an id or a key in a label."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.engine import Connection, Engine

from tandem.runtime.gauges import MAX_COUNTED, DatabaseCollector


class OutboxGauges(DatabaseCollector):
    """What waits to be published: over all replicas, by the database's clock (R13)."""

    def __init__(self, engine: Engine, table: sa.Table) -> None:
        super().__init__(engine)
        some = sa.select(table.c.created_at).order_by(table.c.seq).limit(MAX_COUNTED).subquery()
        self._waiting = sa.select(
            sa.func.count(), sa.func.coalesce(sa.func.min(some.c.created_at), sa.func.now())
        ).select_from(some)

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        """In the order in which `read` fills them."""
        return (
            GaugeMetricFamily("tandem_outbox_messages", "Messages that wait for the relay.", labels=[]),
            GaugeMetricFamily(
                "tandem_outbox_oldest_timestamp_seconds",
                "When the oldest of them was written, in s since 1970; the present time where there is none.",
                labels=[],
            ),
        )

    def read(self, connection: Connection) -> Iterable[Metric]:
        """Costs what waits."""
        waiting, oldest = self.describe()
        count, since = connection.execute(self._waiting).one()
        waiting.add_metric([], count)
        oldest.add_metric([], since.timestamp())
        return waiting, oldest
