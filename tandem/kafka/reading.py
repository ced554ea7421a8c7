"""The client library's messages as values of ours, and all that a topic holds, for people."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from tandem.kafka.config import Cluster
from tandem.kafka.messages import Incoming
from tandem.kafka.topics import unavailable
from tandem.runtime.errors import Reason, TandemError

MAX_READ = 100_000
"""Messages of one topic that are looked at: the newest."""

READ_S = 10.0


def incoming(message: Message) -> Incoming:
    """As a value. What isn't text in a header or key is no message of ours, and shown as far as it can be."""
    headers: Any = message.headers() or []
    kind, at_ms = message.timestamp()
    return Incoming(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_text(message.key()),
        value=_bytes(message.value()),
        headers={name: _text(value) for name, value in headers},
        at=at_ms / 1000 if kind else None,
    )


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def read_all(cluster: Cluster, topic: str) -> list[Incoming]:
    """What is in the topic now; the newest MAX_READ, shared among its partitions. Leaves no trace at the broker.

    Raises TandemError (UNAVAILABLE) where the broker can't be asked.
    """
    client = Consumer(
        {
            **cluster.reach(),
            "group.id": f"{cluster.prefix}.look.{uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        about = client.list_topics(topic, timeout=READ_S).topics[topic]
        if about.error is not None:
            return []  # nothing was ever buried
        ends: dict[int, int] = {}
        places = []
        for number in sorted(about.partitions):
            low, high = client.get_watermark_offsets(TopicPartition(topic, number), timeout=READ_S)
            if high > low:
                ends[number] = high
                places.append(TopicPartition(topic, number, max(low, high - MAX_READ // len(about.partitions))))
        client.assign(places)
        return _until(client, ends)
    except KafkaException as error:
        raise unavailable(error) from error
    finally:
        client.close()


def _until(client: Consumer, ends: dict[int, int]) -> list[Incoming]:
    """Everything up to these offsets, by partition → the one after the last."""
    found: list[Incoming] = []
    until = time.monotonic() + READ_S
    while ends:
        if time.monotonic() > until:
            raise TandemError("the broker was too slow", reason=Reason.UNAVAILABLE, retry_after_s=1)
        for one in client.consume(1_000, 0.1):
            if one.error() is not None:
                raise unavailable(KafkaException(one.error()))
            message = incoming(one)
            if message.partition in ends:
                found.append(message)
                if message.offset + 1 >= ends[message.partition]:
                    del ends[message.partition]
    return found
