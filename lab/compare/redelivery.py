"""Sends every message that a broker holds once more, in reverse order: delivered twice, and out of order."""

from __future__ import annotations

import importlib
from typing import Any

FETCH_S = 2.0
MAX_MESSAGES = 100_000


def redeliver(servers: str) -> int:
    """How many there were. Topics of the brokers' own begin with an underscore."""
    kafka: Any = importlib.import_module("confluent_kafka")
    consumer = kafka.Consumer({"bootstrap.servers": servers, "group.id": "compare", "enable.auto.commit": False})
    topics = consumer.list_topics(timeout=10).topics
    partitions = [
        kafka.TopicPartition(name, number, kafka.OFFSET_BEGINNING)
        for name, topic in topics.items()
        if not name.startswith("_")
        for number in topic.partitions
    ]
    consumer.assign(partitions)
    found: list[Any] = []
    while len(found) < MAX_MESSAGES and (some := consumer.consume(1_000, timeout=FETCH_S)):
        found += [message for message in some if message.error() is None]
    consumer.close()
    producer = kafka.Producer({"bootstrap.servers": servers})
    for message in reversed(found):
        producer.produce(message.topic(), message.value(), message.key(), headers=message.headers())
        producer.poll(0)
    producer.flush(30)
    return len(found)
