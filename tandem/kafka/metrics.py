"""What publishers, relays and consumers count. Nothing here has an id or a key in a label; topics are configured ones.

A counter is its process's own: over replicas they are added up. What an outbox holds is in `gauges.py`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class KafkaMetrics:
    """The counters of one process's dealings with Kafka, in a registry of its choice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.published = Counter(
            "tandem_kafka_published", "Messages that the broker has acknowledged.", ["topic"], registry=registry
        )
        self.publish_errors = Counter(
            "tandem_kafka_publish_errors",
            "Messages that the broker did not acknowledge, by reason; they may still arrive.",
            ["topic", "reason"],
            registry=registry,
        )
        self.relay_last_success = Gauge(
            "tandem_relay_last_success_timestamp_seconds",
            "When an outbox's relay last ran to its end, in s since 1970; 0 before the first time.",
            registry=registry,
        )
        self.consumed = Counter(
            "tandem_kafka_consumed",
            "Messages taken up, by how: done, again (it will be tried again), dead (buried).",
            ["topic", "outcome"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "tandem_kafka_dead_letters",
            "Messages buried in a dead-letter topic, by reason. Each waits for a person.",
            ["topic", "reason"],
            registry=registry,
        )
        self.lag = Gauge(
            "tandem_kafka_consumer_lag",
            "Messages of the partitions consumed here that were not taken up yet.",
            ["topic"],
            registry=registry,
        )
        self.oldest = Gauge(
            "tandem_kafka_consumer_reached_timestamp_seconds",
            "Up to when everything published was taken up, in s since 1970: the present time where nothing waits.",
            ["topic"],
            registry=registry,
        )
        self.consumer_last_success = Gauge(
            "tandem_kafka_consumer_last_success_timestamp_seconds",
            "When a consumer last ran to its end with the broker answering, in s since 1970; 0 before the first time.",
            ["topic"],
            registry=registry,
        )

    def serve(self, topic: str) -> None:
        """Has a consumer's metrics there from the start: the first one is an increase, too."""
        for outcome in ("done", "again", "dead"):
            self.consumed.labels(topic, outcome)
        self.lag.labels(topic)
        self.consumer_last_success.labels(topic)
