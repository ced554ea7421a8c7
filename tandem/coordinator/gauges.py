"""What a decision log knows of deliveries that are not made yet, as metrics. Nothing here has an id in a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.engine import Connection, Engine

from tandem.coordinator.tables import decision as d
from tandem.runtime.errors import PAGING
from tandem.runtime.gauges import MAX_COUNTED, OTHER, DatabaseCollector

REASONS = tuple(sorted(reason.value for reason in PAGING))
"""Why a delivery is parked; whatever else a row says is OTHER."""


class CoordinatorGauges(DatabaseCollector):
    """What has still to be delivered, and what is parked: over all replicas, by the database's clock (R13).

    name: the coordinator's; a log may hold the decisions of others. participants: the configured names; each has its
    gauges from the start.
    """

    def __init__(self, engine: Engine, *, name: str, participants: Iterable[str]) -> None:
        super().__init__(engine)
        self._name = name
        self._participants = tuple(participants)
        self._undelivered = _undelivered(name)
        self._parked = _parked(name)

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        """In the order in which `read` fills them."""
        labels = ["coordinator", "participant"]
        return (
            GaugeMetricFamily(
                "tandem_undelivered_decisions",
                "Committed decisions that a participant has not acknowledged.",
                labels=labels,
            ),
            GaugeMetricFamily(
                "tandem_oldest_undelivered_timestamp_seconds",
                "When the oldest undelivered decision was made, in s since 1970; the present time where there is none.",
                labels=["coordinator"],
            ),
            GaugeMetricFamily(
                "tandem_parked_deliveries",
                "Deliveries that nobody repeats any more, by why: they wait for a person (R5).",
                labels=[*labels, "reason"],
            ),
        )

    def read(self, connection: Connection) -> Iterable[Metric]:
        """Costs what is left to do, not what is stored."""
        families = self.describe()
        undelivered, oldest, parked = families
        waiting = connection.execute(self._undelivered).all()
        given_up = connection.execute(self._parked).all()
        now = connection.execute(sa.select(sa.func.now())).scalar_one()
        unacknowledged = Counter({row.participant: row.n for row in waiting})
        by_reason = Counter({(row.participant, row.reason): row.n for row in given_up})
        for participant in sorted({*self._participants, *(row.participant for row in (*waiting, *given_up))}):
            undelivered.add_metric([self._name, participant], unacknowledged[participant])
            for reason in (*REASONS, OTHER):
                parked.add_metric([self._name, participant, reason], by_reason[participant, reason])
        oldest.add_metric([self._name], min((row.oldest for row in waiting), default=now).timestamp())
        return families


def _undelivered(name: str) -> sa.Select[Any]:
    """By recovery's own partial index: what is due comes first, which is the oldest."""
    some = (
        sa.select(d.c.undelivered, d.c.decided_at)
        .where(d.c.coordinator == name, d.c.undelivered != sa.literal_column("'{}'::text[]"))
        .order_by(d.c.next_attempt_at)
        .limit(MAX_COUNTED)
        .subquery()
    )
    each = sa.select(sa.func.unnest(some.c.undelivered).label("participant"), some.c.decided_at).subquery()
    n, oldest = sa.func.count().label("n"), sa.func.min(each.c.decided_at).label("oldest")
    return sa.select(each.c.participant, n, oldest).group_by(each.c.participant)


def _parked(name: str) -> sa.Select[Any]:
    some = (
        sa.select(d.c.parked)
        .where(d.c.coordinator == name, d.c.parked != sa.literal_column("'{}'::jsonb"))
        .limit(MAX_COUNTED)
        .subquery()
    )
    each = sa.func.jsonb_each_text(some.c.parked).table_valued("key", "value", name="each").render_derived()
    reason = sa.case((each.c.value.in_(REASONS), each.c.value), else_=OTHER).label("reason")
    participant, n = each.c.key.label("participant"), sa.func.count().label("n")
    return sa.select(participant, reason, n).select_from(some.join(each, sa.true())).group_by(each.c.key, reason)
