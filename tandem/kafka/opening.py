"""A service's dead letters, opened for an operator's command, beside a process that may run or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from prometheus_client import CollectorRegistry

from tandem.kafka.config import Cluster
from tandem.kafka.dead_letters import Graveyard
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.kafka.reading import read_all


@contextmanager
def graveyard(cluster: Cluster, topics: Sequence[str], *, name: str) -> Iterator[Graveyard]:
    """topics: those that the service consumes. name: the service's own."""
    with closing(Publisher(cluster, KafkaMetrics(CollectorRegistry()), name=f"{name}-operator")) as publisher:
        yield Graveyard(topics, partial(read_all, cluster), publisher.publish)
