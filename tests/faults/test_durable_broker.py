"""kill -9 of brokers that keep what they have acknowledged: Apache Kafka, where KAFKA_HOME says that one is at hand.

The sweeper asks after an hour here, so that nothing but the broker brings an event or a decision to the other side.
"""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from lab import apache_kafka
from lab.broker import Broker
from tests.faults.kafka_house import House, opened
from tests.support.rules import eventually

pytestmark = pytest.mark.skipif(apache_kafka.home() is None, reason="needs Apache Kafka: KAFKA_HOME, and java")

KILLS = 3
BETWEEN = 12
"""Signups that are acknowledged from one kill to the next."""

CLIENTS = 4
PAUSE_S = 0.1
"""Of a client between two signups: brokers that start are to catch up while others go on."""

AN_HOUR_S = 3_600
LONG_S = 90.0


class Clients:
    """Sign up at once and all the time; each signup is repeated until it is answered."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def _run(self) -> None:
        while not self._stopping.is_set():
            token = f"d{uuid4().hex[:12]}"
            while not self._stopping.is_set():
                try:
                    self._house.sign_up(token)
                except grpc.RpcError:
                    continue
                self.acknowledged.append(token)
                self._stopping.wait(PAUSE_S)
                break

    def more(self) -> None:
        """Waits until BETWEEN more were acknowledged."""
        until = len(self.acknowledged) + BETWEEN
        eventually(lambda: len(self.acknowledged) >= until, LONG_S)

    @contextmanager
    def calling(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()


@contextmanager
def standing(nodes: int, new_database: Callable[[str], str], design: str) -> Iterator[House]:
    """A house with a broker of this many nodes."""
    with tempfile.TemporaryDirectory(prefix="tandem-durable-") as folder:
        broker = Broker(Path(folder), nodes=nodes).start()
        try:
            with opened(new_database, broker, ttl_s=AN_HOUR_S) as house:
                house.choose(design)
                yield house
        finally:
            broker.kill()


def all_there(house: House, tokens: list[str]) -> None:
    """Both sides have each, once, and nothing is left under way."""
    for token in tokens:
        eventually(
            lambda token=token: (  # type: ignore[misc]
                house.counts("identity", token) == (1, 1, 0, 0)
                and house.counts("profiles", token) == (1, 1, 1, 1, 0, 0)
            ),
            LONG_S,
        )


@pytest.mark.parametrize("design", ["saga", "hybrid"])
def test_the_only_broker_is_killed(new_database: Callable[[str], str], design: str) -> None:
    """Signups go on while it is away, and what was acknowledged, by it or before it, reaches the other side once."""
    with standing(1, new_database, design) as house:
        clients = Clients(house)
        with clients.calling():
            for _ in range(KILLS):
                clients.more()
                house.broker.kill()
                clients.more()  # nobody waits for a broker
                house.broker.start()
            clients.more()
        all_there(house, clients.acknowledged)


@pytest.mark.parametrize("design", ["saga", "hybrid"])
def test_one_node_of_three_is_killed(new_database: Callable[[str], str], design: str) -> None:
    """The other two take over: what is signed up while it is away is on both sides before it is back."""
    with standing(3, new_database, design) as house:
        clients = Clients(house)
        with clients.calling():
            for node in house.broker.nodes:
                clients.more()
                node.end(signal.SIGKILL)
                clients.more()
                last = clients.acknowledged[-1]
                eventually(lambda last=last: house.counts("profiles", last)[:4] == (1, 1, 1, 1), LONG_S)  # type: ignore[misc]
                house.broker.start()
            clients.more()
        all_there(house, clients.acknowledged)
