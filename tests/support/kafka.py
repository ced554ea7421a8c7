"""What tests with a broker stand on: clusters with topics of their own, and what is asked of consumers and relays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

from prometheus_client import CollectorRegistry

from lab.broker import Broker
from tandem.kafka.config import Cluster
from tandem.kafka.consumer import Consumer
from tandem.kafka.handling import Handler
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.runtime.errors import TandemError
from tests.support.rules import eventually


@dataclass
class Line:
    """One cluster's publisher and consumers, with topics that nobody else uses."""

    cluster: Cluster
    stack: ExitStack
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = KafkaMetrics(self.registry)
        self.publisher = Publisher(self.cluster, self.metrics, name="tests")
        self.stack.callback(self.publisher.close)

    def consumer(self, topic: str, handle: Handler, *, group: str = "tests", batch: int = 500) -> Consumer:
        """A consumer of `topic`."""
        made = Consumer(
            self.cluster, topic, handle, group=group, publisher=self.publisher, metrics=self.metrics, batch=batch
        )
        self.stack.callback(made.close)
        return made

    def value(self, name: str, **labels: str) -> float:
        """A metric; 0 where it is not there."""
        return self.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def line(broker: Broker, *, partitions: int = 3, instance: str = "") -> Iterator[Line]:
    """A line of its own."""
    prefix = f"t{uuid4().hex[:10]}"
    with ExitStack() as stack:
        yield Line(Cluster(broker.servers, prefix=prefix, partitions=partitions, instance=instance), stack)


def run_until(consumer: Consumer, done: Callable[[], object], within_s: float = 20.0) -> None:
    """Runs it until that is true."""
    eventually(lambda: done() or (consumer.run_once(0.1), done())[1], within_s)


class Running:
    """Work that is done over and over, each in a thread of its own, as the jobs of a process are, while `with` lasts.

    It ends with what a work has raised, unless that is a TandemError: a broker or a database that can't serve now.
    """

    def __init__(self, *works: Callable[[], object], every_s: float = 0.02) -> None:
        self._every_s = every_s
        self._stopping = threading.Event()
        self._locks = [threading.Lock() for _ in works]
        self._failures: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work, lock), daemon=True)
            for work, lock in zip(works, self._locks, strict=True)
        ]

    def __enter__(self) -> Running:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread hangs"
        if self._failures:
            raise self._failures[0]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """None of it runs meanwhile: what was under way has ended."""
        with ExitStack() as held:
            for lock in self._locks:
                held.enter_context(lock)
            yield

    def _run(self, work: Callable[[], object], lock: threading.Lock) -> None:
        while not self._stopping.wait(self._every_s):
            with lock:
                try:
                    work()
                except TandemError:
                    continue
                except Exception as error:  # handed to whoever ends this
                    self._failures.append(error)
                    return
