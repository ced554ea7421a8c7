"""The topics that a process needs: made at the first use where they are missing, and left alone where they are not."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tandem.kafka.config import Cluster
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.telemetry import logger

log = logger("tandem.kafka")

MAKE_S = 5.0

MISSING = "UNKNOWN_TOPIC_OR_PART"
"""Kafka's name for a topic that is not there."""


def ensure(cluster: Cluster, topics: Iterable[str], *, timeout_s: float = MAKE_S) -> None:
    """Makes the topics that are missing. Raises TandemError (UNAVAILABLE) where that can't be done now."""
    admin = AdminClient(cluster.reach())
    try:
        there = set(admin.list_topics(timeout=timeout_s).topics)
        missing = sorted(set(topics) - there)
        if not missing:
            return
        wanted = [NewTopic(topic, cluster.partitions, cluster.replication) for topic in missing]
        for topic, future in admin.create_topics(
            wanted, operation_timeout=timeout_s, request_timeout=timeout_s
        ).items():
            try:
                future.result()
                log.info("topic made", topic=topic, partitions=cluster.partitions)
            except KafkaException as error:
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS":  # a replica was faster
                    raise
    except KafkaException as error:
        raise unavailable(error) from error


def unavailable(error: KafkaException) -> TandemError:
    """What the broker's trouble means to whoever waits for it. The client's text stays here: it names machines."""
    return TandemError(
        "the broker can't serve", reason=Reason.UNAVAILABLE, retry_after_s=1, metadata={"kafka": error.args[0].name()}
    )
