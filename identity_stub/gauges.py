"""Accounts that have no profile yet, as metrics. Nothing here has an id in a label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.engine import Connection, Engine

from identity_stub import tables as t
from identity_stub import users
from tandem.runtime.gauges import MAX_COUNTED, DatabaseCollector

STATUSES = (users.ABSENT, users.PENDING, users.REJECTED)


class AccountGauges(DatabaseCollector):
    """Over all replicas, by the database's clock (R13)."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._counts = sa.union_all(*(_some(table, status) for table in (t.users, t.businesses) for status in STATUSES))

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        """In the order in which `read` fills them."""
        return (
            GaugeMetricFamily(
                "tandem_accounts_without_profile",
                "Accounts that have no profile, by kind and why: absent, pending (on its way), rejected.",
                labels=["kind", "status"],
            ),
            GaugeMetricFamily(
                "tandem_oldest_pending_account_timestamp_seconds",
                "When the oldest account was made whose profile is on its way, in s since 1970; the present time where"
                " there is none.",
                labels=[],
            ),
        )

    def read(self, connection: Connection) -> Iterable[Metric]:
        """Costs what is without one."""
        counts, oldest = self.describe()
        since = connection.execute(sa.select(sa.func.now())).scalar_one()
        for row in connection.execute(self._counts):
            counts.add_metric([row.kind, row.status], row.n)
            if row.status == users.PENDING and row.since is not None:
                since = min(since, row.since)
        oldest.add_metric([], since.timestamp())
        return counts, oldest


def _some(table: sa.Table, status: str) -> sa.Select[str, str, int, Any]:
    """By the partial index of those without a profile, which needs the condition as it was written."""
    some = (
        sa.select(table.c.created_at)
        .where(table.c.profile_status == status, table.c.profile_status != sa.literal_column("'active'"))
        .limit(MAX_COUNTED)
        .subquery()
    )
    return sa.select(
        sa.literal(table.name).label("kind"),
        sa.literal(status).label("status"),
        sa.func.count().label("n"),
        sa.func.min(some.c.created_at).label("since"),
    ).select_from(some)
