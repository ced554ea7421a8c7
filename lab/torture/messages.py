"""What a broker holds, read past all wires with the client library alone; and sent once more."""

from __future__ import annotations

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

ASK_S = 10.0
FETCH_S = 0.5
SEND_S = 10.0


def brokers(servers: str) -> set[str]:
    """host:port of each broker, as whoever asks there is told."""
    consumer = _consumer(servers)
    try:
        return {f"{one.host}:{one.port}" for one in consumer.list_topics(timeout=ASK_S).brokers.values()}
    finally:
        consumer.close()


def counted(servers: str, prefix: str, suffix: str) -> dict[str, int]:
    """Topic → how many messages are in it, of the topics whose names begin and end so."""
    consumer = _consumer(servers)
    try:
        return {
            name: sum(high - low for low, high in (consumer.get_watermark_offsets(one, timeout=ASK_S) for one in some))
            for name, some in _partitions(consumer, prefix).items()
            if name.endswith(suffix)
        }
    finally:
        consumer.close()


def again(servers: str, prefix: str, *, most: int) -> int:
    """Sends the oldest messages of these topics once more, the newest of them first; how many there were."""
    consumer = _consumer(servers)
    found: list[Message] = []
    try:
        consumer.assign([one for some in _partitions(consumer, prefix).values() for one in some])
        while len(found) < most and (some := consumer.consume(most - len(found), timeout=FETCH_S)):
            found += [message for message in some if message.error() is None]
    except KafkaException:
        return 0  # a broker that is not there
    finally:
        consumer.close()
    producer = Producer({"bootstrap.servers": servers, "message.timeout.ms": int(SEND_S * 1000)})
    for message in reversed(found):
        producer.produce(message.topic() or "", message.value(), message.key(), headers=message.headers())
    producer.flush(SEND_S)
    return len(found)


def _consumer(servers: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "torture",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
            "fetch.error.backoff.ms": 50,
        }
    )


def _partitions(consumer: Consumer, prefix: str) -> dict[str, list[TopicPartition]]:
    """Topic → its partitions, from their beginnings."""
    return {
        name: [TopicPartition(name, number, OFFSET_BEGINNING) for number in topic.partitions]
        for name, topic in consumer.list_topics(timeout=ASK_S).topics.items()
        if name.startswith(prefix)
    }
