"""Publishes what an outbox holds, with any number of relays.

Once the broker has acknowledged, the row goes. A relay that dies in between publishes again. Of one key only the oldest
row is ever on its way, so that the order of a key holds whatever fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Engine, Row

from tandem.kafka.messages import TYPE, Outgoing
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.runtime.claims import Peers, claim, make_due
from tandem.runtime.database import ASIDE
from tandem.runtime.errors import Reason
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("tandem.relay")

LEASE_S = 5.0
"""For how long claimed rows are left alone by other relays; above one publishing."""

PUBLISH_S = 2.0
MAX_ROUNDS = 100
"""Batches in one run; what is left waits for the next."""

_BROKER = "kafka"

_OF_THE_MESSAGE = frozenset({Reason.MESSAGE_TOO_LARGE, Reason.REFUSED})
"""What speaks against a message or its topic, and not against the broker."""


class Relay:
    """`run_once()` publishes what is due. Any number of them may run.

    batch: rows a claim. clock: wall time in s, for the last-success gauge only.
    """

    def __init__(
        self,
        engine: Engine,
        table: sa.Table,
        publisher: Publisher,
        metrics: KafkaMetrics,
        *,
        batch: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._table = table
        self._publisher = publisher
        self._metrics = metrics
        self._batch = batch
        self._clock = clock
        self._peers = Peers()

    def run_once(self) -> int:
        """One run: how many messages were published. Raises only if the own database can't serve."""
        made = 0
        if self._peers.failing():
            if self._peers.due_probes():
                made = self._publish(self._claim(limit=1, probe=True))
            if self._peers.failing():
                return made
        for _ in range(MAX_ROUNDS):
            rows = self._claim(limit=self._batch)
            made += self._publish(rows)
            if not rows or self._peers.failing():
                break
        if not self._peers.failing():
            self._metrics.relay_last_success.set(self._clock())
        return made

    def _claim(self, *, limit: int, probe: bool = False) -> Sequence[Row[Any]]:
        """Takes what is due: of each key the oldest, and while that is on its way nothing."""
        t, before = self._table, self._table.alias("before")
        is_first = ~sa.exists().where(before.c.topic == t.c.topic, before.c.key == t.c.key, before.c.seq < t.c.seq)
        rows = claim(self._engine, t, due=[is_first], limit=limit, lease_s=LEASE_S, probe=probe)
        if rows:
            failpoint("relay.after_claim")
        return rows

    def _publish(self, rows: Sequence[Row[Any]]) -> int:
        if not rows:
            return 0
        messages = [Outgoing(row.topic, row.key, bytes(row.value), {TYPE: row.type}) for row in rows]
        answers = self._publisher.publish(messages, until=time.monotonic() + PUBLISH_S)
        failpoint("relay.after_publish")
        published = [row.seq for row, answer in zip(rows, answers, strict=True) if answer is None]
        failed: dict[Reason, list[int]] = {}
        for row, answer in zip(rows, answers, strict=True):
            if answer is not None:
                failed.setdefault(answer.reason, []).append(row.seq)
        self._note(published, failed)
        failpoint("relay.after_delete")
        if failed and not published and _OF_THE_MESSAGE.isdisjoint(failed):
            self._peers.failed(_BROKER)
            log.warning("broker did not acknowledge", messages=len(rows), reasons=sorted(failed))
        elif published and self._peers.answered(_BROKER):
            make_due(self._engine, self._table, waiting=[], lease_s=LEASE_S)
        return len(published)

    def _note(self, published: Sequence[int], failed: dict[Reason, list[int]]) -> None:
        """Deletes what the broker has; says why the rest is still there. May be lost: it is published again then."""
        t = self._table
        with local_transaction(self._engine, ASIDE) as connection:
            if published:
                connection.execute(sa.delete(t).where(t.c.seq == sa.any_(_array(published))))
            for reason, some in failed.items():
                late = sa.update(t).where(t.c.seq == sa.any_(_array(some))).values(last_error=reason.value)
                connection.execute(late)


def _array(numbers: Sequence[int]) -> sa.Cast[Any]:
    return sa.cast(list(numbers), ARRAY(sa.BigInteger))
