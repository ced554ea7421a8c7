"""What profiles does with Kafka, wired: decisions that come as messages, profiles that a saga asks for, and the news.

Needs the extra `kafka`. All of it runs wherever a broker is configured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from prometheus_client import CollectorRegistry

from profiles_server import tables as t
from profiles_server.config import Settings
from profiles_server.creating import Creating
from profiles_server.profiles import ProfilesResource
from tandem.kafka import decisions, inbox
from tandem.kafka.config import Cluster
from tandem.kafka.consumer import Consumer
from tandem.kafka.gauges import OutboxGauges
from tandem.kafka.handling import Handler
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.kafka.relay import Relay
from tandem.participant.participant import Participant
from tandem.participant.transaction import ResolvedBy
from tandem.profiles.topics import REQUESTED
from tandem.runtime.gauges import gauges_engine

POLL_INTERVAL_S = 0.05
"""From one run of a consumer to the next: a run itself waits for messages."""


class Messaging:
    """The stack closes it in the order in which things depend on each other."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        participant: Participant,
        registry: CollectorRegistry,
        stack: ExitStack,
    ) -> None:
        engine = participant.engine
        metrics = KafkaMetrics(registry)
        publisher = Publisher(cluster, metrics, name=settings.name)
        stack.callback(publisher.close)
        gauges = gauges_engine(engine.url, name="profiles-outbox-gauges")
        stack.callback(gauges.dispose)
        registry.register(OutboxGauges(gauges, t.outbox))

        def consumer(topic: str, handle: Handler, work: str) -> Consumer:
            made = Consumer(
                cluster, topic, handle, group=f"{settings.name}.{work}", publisher=publisher, metrics=metrics
            )
            stack.callback(made.close)
            return made

        committing = decisions.committing(lambda keys: participant.commit(keys, ResolvedBy.COORDINATOR))
        commits, requested = consumed(settings, cluster)
        self._commits = consumer(commits, committing, "commits")
        self._requested = consumer(requested, Creating(engine, ProfilesResource(), cluster), "requested")
        self._relay = Relay(engine, t.outbox, publisher, metrics)
        self._purge = inbox.Purge(engine, t.inbox, retention_ms=settings.times.retention_ms)
        self._intervals = (settings.relay_interval_s, settings.purge_interval_s)

    @property
    def jobs(self) -> list[tuple[str, Callable[[], object], float]]:
        """Name, work, and the interval in s."""
        relay_s, purge_s = self._intervals
        return [
            ("commits", self._commits.run_once, POLL_INTERVAL_S),
            ("requested", self._requested.run_once, POLL_INTERVAL_S),
            ("relay", self._relay.run_once, relay_s),
            ("purge-inbox", self._purge.run_once, purge_s),
        ]


def consumed(settings: Settings, cluster: Cluster) -> Sequence[str]:
    """The topics that this process consumes: decisions, and profiles that are asked for."""
    return [decisions.topic(cluster, settings.name), cluster.topic(*REQUESTED)]
