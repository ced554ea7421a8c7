"""The topics that a process needs: made at the first use where they are missing, and left alone where they are not."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tandem.kafka.config import Cluster
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.telemetry import logger

log = logger("tandem.kafka")

MAKE_S = 5.0

MISSING = "UNKNOWN_TOPIC_OR_PART"
"""Kafka's name for a topic that is not there."""

_REFUSALS = frozenset(
    {"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "POLICY_VIOLATION", "TOPIC_EXCEPTION"}
)


def ensure(cluster: Cluster, topics: Iterable[str], *, timeout_s: float = MAKE_S) -> None:
    """Makes the topics that are missing. Raises TandemError where one of them can't be had: see `lacking`."""
    for error in lacking(cluster, topics, timeout_s=timeout_s).values():
        raise error


def lacking(cluster: Cluster, topics: Iterable[str], *, timeout_s: float = MAKE_S) -> dict[str, TandemError]:
    """Makes the topics that are missing: those that can't be had, each with UNAVAILABLE, or REFUSED where the broker
    does not let us make it.
    """
    wanted = set(topics)
    admin = AdminClient(cluster.reach())
    try:
        missing = sorted(wanted - set(admin.list_topics(timeout=timeout_s).topics))
        if not missing:
            return {}
        made = admin.create_topics(
            [NewTopic(topic, cluster.partitions, cluster.replication) for topic in missing],
            operation_timeout=timeout_s,
            request_timeout=timeout_s,
        )
    except KafkaException as error:
        return dict.fromkeys(wanted, unavailable(error))
    errors: dict[str, TandemError] = {}
    for topic, future in made.items():
        try:
            future.result()
            log.info("topic made", topic=topic, partitions=cluster.partitions)
        except KafkaException as error:
            name = error.args[0].name()
            if name in _REFUSALS:
                errors[topic] = TandemError(
                    "the broker does not let us make a topic", reason=Reason.REFUSED, metadata={"kafka": name}
                )
            elif name != "TOPIC_ALREADY_EXISTS":  # a replica was faster
                errors[topic] = unavailable(error)
    return errors


def ends_client(error: KafkaError) -> bool:
    """Whether a client can't go on after this error. It says so once, and then only waits, or fails with _FATAL.

    A named consumer meets one where its group's coordinator dies and the next one takes it for another of its name; an
    idempotent producer where the broker has lost its place.
    """
    return error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)


def unavailable(error: KafkaException) -> TandemError:
    """What the broker's trouble means to whoever waits for it. The client's text stays here: it names machines."""
    return TandemError(
        "the broker can't serve", reason=Reason.UNAVAILABLE, retry_after_s=1, metadata={"kafka": error.args[0].name()}
    )
