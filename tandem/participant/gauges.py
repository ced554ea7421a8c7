"""What a participant's database knows of transactions in doubt, as metrics. Nothing here has an id in a label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy.engine import Connection, Engine

from tandem.participant.resolver import Outcome
from tandem.participant.tables import participant_action
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import State
from tandem.runtime.errors import CONTRADICTIONS, Reason
from tandem.runtime.gauges import MAX_COUNTED, OTHER, DatabaseCollector

REASONS = (Outcome.EXPIRED.value, *sorted(reason.value for reason in (*CONTRADICTIONS, Reason.PUBLISHED_NOT_STAGED)))
"""Why the sweeper parks; whatever else a row says is OTHER."""

_Gauge = GaugeMetricFamily
_Families = tuple[_Gauge, _Gauge, _Gauge, _Gauge, CounterMetricFamily]


class ParticipantGauges(DatabaseCollector):
    """What is prepared, parked, forced: over all replicas, by the database's clock (R13).

    coordinators: the configured names; each has its gauges from the start.
    """

    def __init__(self, engine: Engine, coordinators: Iterable[str]) -> None:
        super().__init__(engine)
        self._coordinators = tuple(coordinators)

    def describe(self) -> _Families:
        """In the order in which `read` fills them."""
        return (
            _Gauge("tandem_prepared_transactions", "Transactions prepared and not ended.", labels=["coordinator"]),
            _Gauge(
                "tandem_oldest_prepared_timestamp_seconds",
                "When the oldest prepared transaction that is due, was asked for, or is parked, was prepared, in s"
                " since 1970; the present time where there is none.",
            ),
            _Gauge(
                "tandem_parked_transactions",
                "Transactions that nobody asks for any more, by why: they wait for a person (R4, R5).",
                labels=["coordinator", "reason"],
            ),
            _Gauge(
                "tandem_unconfirmed_transactions",
                "Transactions that an operator has forced and that no decision stands behind yet (R5).",
                labels=["coordinator"],
            ),
            CounterMetricFamily(
                "tandem_heuristic_outcomes", "Outcomes that an operator has forced, ever (R5).", labels=["outcome"]
            ),
        )

    def read(self, connection: Connection) -> Iterable[Metric]:
        """Costs what is in doubt, not what is stored."""
        families = self.describe()
        prepared, oldest, parked, unconfirmed, heuristic = families
        rows = connection.execute(_IN_DOUBT).all()
        waiting = Counter({(row.coordinator, row.reason): row.parked for row in rows})
        for coordinator in sorted({*self._coordinators, *(row.coordinator for row in rows)}):
            ours = [row for row in rows if row.coordinator == coordinator]
            prepared.add_metric([coordinator], sum(row.prepared for row in ours))
            unconfirmed.add_metric([coordinator], sum(row.forced for row in ours))
            for reason in (*REASONS, OTHER):
                parked.add_metric([coordinator, reason], waiting[coordinator, reason])
        forced = connection.execute(_FORCED).one()
        since = [row.oldest for row in rows if row.oldest is not None]
        oldest.add_metric([], min(since, default=forced.now).timestamp())
        for outcome in (State.COMMITTED, State.ABORTED):
            heuristic.add_metric([outcome.value], getattr(forced, outcome.value))
        return families


def _unfinished() -> sa.Subquery:
    """All that has no decision behind it, up to a limit, by the sweeper's own partial index.

    In its order, what is due comes first. What is parked has no time, and a limit of its own. What is late should have
    ended by now: an initiator may have asked for a ttl of up to a day, and is not late before.
    """
    is_late = sa.or_(t.c.attempts > 0, t.c.next_attempt_at <= sa.func.now(), t.c.parked.is_not(None)).label("is_late")
    columns = (t.c.coordinator, t.c.state, t.c.parked, t.c.prepared_at, is_late)
    due = sa.select(*columns).where(~t.c.confirmed, t.c.next_attempt_at.is_not(None)).order_by(t.c.next_attempt_at)
    parked = sa.select(*columns).where(~t.c.confirmed, t.c.next_attempt_at.is_(None))
    some = [sa.select(one.limit(MAX_COUNTED).subquery()) for one in (due, parked)]
    return sa.union_all(*some).subquery("unfinished")


def _in_doubt() -> sa.Select[Any]:
    u = _unfinished().c
    is_prepared = u.state == State.PREPARED.value
    reason = sa.case((u.parked.in_(REASONS), u.parked), (u.parked.is_not(None), OTHER)).label("reason")
    return sa.select(
        u.coordinator,
        reason,
        sa.func.count().filter(is_prepared).label("prepared"),
        sa.func.min(u.prepared_at).filter(is_prepared, u.is_late).label("oldest"),
        sa.func.count().filter(u.parked.is_not(None)).label("parked"),
        sa.func.count().filter(~is_prepared).label("forced"),
    ).group_by(u.coordinator, reason)


def _forced() -> sa.Select[Any]:
    """How often which outcome was forced, by what operators have left behind (`operating.force`), and the time."""
    a = participant_action.c
    counts = [
        sa.func.count().filter(a.detail.startswith(outcome.value)).label(outcome.value)
        for outcome in (State.COMMITTED, State.ABORTED)
    ]
    columns: list[sa.ColumnElement[Any]] = [sa.func.now().label("now"), *counts]
    return sa.select(*columns).where(a.action == "force")


_IN_DOUBT = _in_doubt()
_FORCED = _forced()
