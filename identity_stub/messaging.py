"""What identity does with Kafka, wired: its publisher, the relay of its outbox, what comes back.

Needs the extra `kafka`. All of it runs wherever a broker is configured, whatever the design: what one design has left
behind must not stay when another is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from identity_stub import tables as t
from identity_stub.config import Settings
from identity_stub.gauges import AccountGauges
from identity_stub.settling import Settling, SettlingMetrics
from tandem.kafka.config import Cluster
from tandem.kafka.consumer import Consumer
from tandem.kafka.decisions import PublishedCommits
from tandem.kafka.gauges import OutboxGauges
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.kafka.relay import Relay
from tandem.profiles.topics import settled
from tandem.runtime.gauges import gauges_engine

POLL_INTERVAL_S = 0.05
"""From one run of the consumer to the next: a run itself waits for messages."""


class Messaging:
    """The stack closes it in the order in which things depend on each other."""

    def __init__(
        self, settings: Settings, cluster: Cluster, engine: Engine, registry: CollectorRegistry, stack: ExitStack
    ) -> None:
        metrics = KafkaMetrics(registry)
        gauges = gauges_engine(engine.url, name="identity-outbox-gauges")
        stack.callback(gauges.dispose)
        registry.register(OutboxGauges(gauges, t.outbox))
        registry.register(AccountGauges(gauges))
        self._interval_s = settings.relay_interval_s
        self.publisher = Publisher(cluster, metrics, name=settings.name)
        stack.callback(self.publisher.close)
        self.commits = PublishedCommits(cluster, self.publisher)
        self._relay = Relay(engine, t.outbox, self.publisher, metrics)
        settling = Settling(engine, SettlingMetrics(registry), source=settings.name)
        self._consumer = Consumer(
            cluster,
            cluster.topic(*settled(settings.name)),
            settling,
            group=settings.name,
            publisher=self.publisher,
            metrics=metrics,
        )
        stack.callback(self._consumer.close)

    @property
    def jobs(self) -> list[tuple[str, Callable[[], object], float]]:
        """Name, work, and the interval in s."""
        return [
            ("relay", self._relay.run_once, self._interval_s),
            ("settling", self._consumer.run_once, POLL_INTERVAL_S),
        ]


def consumed(settings: Settings, cluster: Cluster) -> Sequence[str]:
    """The topics that this process consumes."""
    return [cluster.topic(*settled(settings.name))]
