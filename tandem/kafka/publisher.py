"""Publishes, and waits until the broker has it: acks=all, idempotent, bounded in time and memory.

A message without an acknowledgement counts as not published, and may arrive all the same: whoever publishes it again
relies on its consumers' inbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from tandem.kafka import topics
from tandem.kafka.config import Cluster
from tandem.kafka.messages import Outgoing
from tandem.kafka.metrics import KafkaMetrics
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.telemetry import logger

log = logger("tandem.kafka")

QUEUE_LIMIT = 10_000
"""Messages that wait for the broker at the same time, of all callers."""

QUEUE_KIB = 64 * 1024

DELIVERY_S = 4.0
"""How long the client tries by itself; what its caller no longer waits for may arrive within it."""

POLL_S = 0.05
CLOSE_S = 2.0


class Publisher:
    """One producer of a process, which makes the topics that are missing. Thread-safe: what several callers publish
    leaves together.

    name: what the broker's log shows of it.
    """

    def __init__(self, cluster: Cluster, metrics: KafkaMetrics, *, name: str) -> None:
        self._configuration = {
            **cluster.reach(),
            "client.id": name,
            "acks": "all",
            "enable.idempotence": True,
            "delivery.timeout.ms": int(DELIVERY_S * 1000),
            "request.timeout.ms": 2_000,
            "linger.ms": 1,
            "queue.buffering.max.messages": QUEUE_LIMIT,
            "queue.buffering.max.kbytes": QUEUE_KIB,
        }
        self._cluster = cluster
        self._metrics = metrics
        self._topics: set[str] = set()
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._closed = False

    def publish(self, messages: Sequence[Outgoing], *, until: float) -> list[TandemError | None]:
        """None for each message that the broker has acknowledged, else why it has not. until: on time.monotonic()."""
        waiting = _Waiting(len(messages))
        try:
            lacking = self._lacking({message.topic for message in messages} - self._topics, until)
            producer = self._opened()
        except TandemError as error:
            return self._counted(messages, [error] * len(messages))
        for place, message in enumerate(messages):
            if message.topic in lacking:
                waiting.answered(place, lacking[message.topic])
            elif waiting.fatal or not self._send(producer, message, waiting, place, until):
                break
        while waiting.left and not waiting.fatal and time.monotonic() < until:
            waiting.poll(producer, min(POLL_S, max(0.0, until - time.monotonic())))
        answers = waiting.answers()
        if any(answers):  # perhaps a broker that has lost its data: the next call looks for the topics again
            self._topics.clear()
        if waiting.fatal:
            self._forget(producer)
        return self._counted(messages, answers)

    def close(self) -> None:
        """Waits a moment for what is on its way, and publishes nothing more."""
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.flush(CLOSE_S)
            except KafkaException as error:
                log.warning("not all was published", kafka=error.args[0].name())

    def _lacking(self, unknown: set[str], until: float) -> dict[str, TandemError]:
        """Those of the topics that can't be had: nothing can be published there."""
        if not unknown:
            return {}
        errors = topics.lacking(self._cluster, unknown, timeout_s=max(0.1, until - time.monotonic()))
        self._topics |= unknown - errors.keys()
        return errors

    def _opened(self) -> Producer:
        with self._lock:
            if self._closed:
                raise TandemError("this process is stopping", reason=Reason.DEADLINE_PASSED)
            if self._producer is None:
                self._producer = Producer(self._configuration)
            return self._producer

    def _send(self, producer: Producer, message: Outgoing, waiting: _Waiting, place: int, until: float) -> bool:
        """Hands one message to the client; False where its queue stays full until then."""
        report = waiting.reporter(place)
        headers: Any = [(name, value.encode()) for name, value in message.headers.items()]
        while True:
            try:
                producer.produce(
                    message.topic, message.value, message.key.encode(), on_delivery=report, headers=headers
                )
            except BufferError:
                if time.monotonic() > until or waiting.fatal:
                    return False
                waiting.poll(producer, POLL_S)
            except KafkaException as error:
                report(error.args[0], None)
                return True
            else:
                return True

    def _forget(self, producer: Producer) -> None:
        """An idempotent producer that has lost its place can't go on: the next message makes another."""
        with self._lock:
            if self._producer is producer:
                self._producer = None
                log.warning("producer given up: another is made")
        producer.purge()  # others that wait for it are told so

    def _counted(self, messages: Sequence[Outgoing], answers: list[TandemError | None]) -> list[TandemError | None]:
        for message, answer in zip(messages, answers, strict=True):
            if answer is None:
                self._metrics.published.labels(message.topic).inc()
            else:
                self._metrics.publish_errors.labels(message.topic, answer.reason.value).inc()
        return answers


class _Waiting:
    """The reports of one call's messages. They come in whatever thread polls."""

    def __init__(self, count: int) -> None:
        late = TandemError("the broker has not acknowledged it in time", reason=Reason.DEADLINE_PASSED)
        self._answers: list[TandemError | None] = [late] * count
        self.left = count
        self.fatal = False
        self._lock = threading.Lock()

    def reporter(self, place: int) -> Any:
        def report(error: KafkaError | None, _: object) -> None:
            if error is not None and topics.ends_client(error):
                self.fatal = True
            self.answered(place, None if error is None else _told(error))

        return report

    def answered(self, place: int, error: TandemError | None) -> None:
        """What has come of a message, sent or not."""
        with self._lock:
            self._answers[place] = error
            self.left -= 1

    def poll(self, producer: Producer, timeout_s: float) -> None:
        """Has reports come in; a client that can't go on says so here, whoever polls."""
        try:
            producer.poll(timeout_s)
        except KafkaException as error:
            self.fatal |= topics.ends_client(error.args[0])

    def answers(self) -> list[TandemError | None]:
        with self._lock:
            return list(self._answers)


def _told(error: KafkaError) -> TandemError:
    """What a report means. The client's own text names machines, and stays here."""
    if error.name() in ("MSG_SIZE_TOO_LARGE", "INVALID_RECORD"):
        return TandemError("the broker takes no message like this", reason=Reason.MESSAGE_TOO_LARGE)
    return TandemError(
        "the broker did not take it", reason=Reason.UNAVAILABLE, retry_after_s=1, metadata={"kafka": error.name()}
    )
