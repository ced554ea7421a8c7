"""tandem.kafka against a broker: what is published, taken up, held up, buried, replayed, and what an outbox keeps."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from uuid import uuid4

import confluent_kafka
import pytest
import sqlalchemy as sa
from confluent_kafka import KafkaError, KafkaException, Producer
from sqlalchemy.engine import Engine
from uuid_utils.compat import uuid7

from lab.broker import Broker
from tandem.kafka import dead_letters, inbox, outbox
from tandem.kafka.handling import Dead, Later, Verdict
from tandem.kafka.messages import MAX_VALUE_BYTES, TYPE, Incoming, Outgoing, outgoing
from tandem.kafka.reading import read_all
from tandem.kafka.relay import Relay
from tandem.profiles.v1 import events_pb2
from tandem.runtime.actions import Operator
from tandem.runtime.database import create_engine
from tandem.runtime.errors import InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tests.support.house import in_threads
from tests.support.kafka import Line, Running, line, run_until
from tests.support.rules import eventually

BUSY = Later(TandemError("not now", reason=Reason.IN_PROGRESS))
WRONG = Dead(TandemError("never", reason=Reason.MALFORMED_MESSAGE))


@pytest.fixture
def alone(broker: Broker) -> Iterator[Line]:
    with line(broker) as made:
        yield made


@pytest.fixture(scope="module")
def engine(new_database: Callable[[str], str]) -> Iterator[Engine]:
    engine = create_engine(new_database("kafka"))
    yield engine
    engine.dispose()


@pytest.fixture
def table(engine: Engine) -> sa.Table:
    """An outbox of the test's own."""
    schema = f"s{uuid4().hex[:10]}"
    made = outbox.outbox_table(schema)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
        made.create(connection)
    return made


def note(topic: str, key: str, text: str) -> Outgoing:
    """A message of no meaning."""
    return Outgoing(topic, key, text.encode(), {TYPE: "tests.Note"})


def publish(to: Line, *messages: Outgoing) -> None:
    assert to.publisher.publish(messages, until=time.monotonic() + 10) == [None] * len(messages)


class Taker:
    """A handler that keeps what it was given, and says what a test wants it to say of a text."""

    def __init__(self, **says: Verdict | Exception) -> None:
        self.says = says
        self.seen: list[str] = []
        self.done: list[str] = []

    def __call__(self, messages: Sequence[Incoming]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for message in messages:
            text = message.value.decode()
            self.seen.append(text)
            say = self.says.get(text)
            if isinstance(say, Exception):
                raise say
            verdicts.append(say)
        self.done += [m.value.decode() for m, v in zip(messages, verdicts, strict=True) if v is None]
        return verdicts


# --- publishing and taking up -----------------------------------------------------------------------------------


def test_what_is_published_is_taken_up_in_the_order_of_its_key(alone: Line) -> None:
    """Every message once, each key's in order; another consumer of the group begins after them."""
    topic = alone.cluster.topic("order")
    publish(alone, *(note(topic, f"k{i % 5}", f"{i % 5}-{i:03}") for i in range(200)))
    taker = Taker()
    consumer = alone.consumer(topic, taker, batch=40)
    run_until(consumer, lambda: len(taker.done) >= 200)
    assert len(set(taker.done)) == len(taker.done) == 200
    for key in "01234":
        mine = [text for text in taker.done if text.startswith(key)]
        assert mine == sorted(mine)
    consumer.close()
    after = Taker()
    publish(alone, note(topic, "k0", "later"))
    run_until(alone.consumer(topic, after), lambda: after.done)
    assert after.done == ["later"]
    assert alone.value("tandem_kafka_published_total", topic=topic) == 201
    assert alone.value("tandem_kafka_consumed_total", topic=topic, outcome="done") == 201


def test_a_named_consumer_that_was_fenced_comes_back(broker: Broker) -> None:
    """Another of its name has taken its place, or the group's next coordinator thinks so: its client can't commit any
    more, and the consumer makes another.
    """
    with line(broker, instance="only") as made:
        topic = made.cluster.topic("fenced")
        one, other, last = Taker(), Taker(), Taker()
        first, second = made.consumer(topic, one), made.consumer(topic, other)
        publish(made, note(topic, "k", "to the first"))
        run_until(first, lambda: one.done)
        publish(made, note(topic, "k", "to the second"))
        run_until(second, lambda: other.done)
        second.close()
        for again in ("which finds out", "which another client fetches"):
            publish(made, note(topic, "k", again))
            run_until(first, lambda again=again: again in one.done, within_s=60)  # type: ignore[misc]
        first.close()
        publish(made, note(topic, "k", "to the last"))
        run_until(made.consumer(topic, last), lambda: last.done)
        assert last.done == ["to the last"], "what was done before is committed"


def test_a_message_that_has_to_wait_holds_up_its_partition_only(broker: Broker) -> None:
    """Nothing after it counts as done before it is, and other partitions go on; then it all comes in order."""
    with line(broker, partitions=2) as two:
        topic = two.cluster.topic("held")
        keys = partition_keys(two, topic)
        taker = Taker(held=BUSY)
        consumer = two.consumer(topic, taker)
        first = [note(topic, keys[0], text) for text in ("before", "held", "behind")]
        publish(two, *first, note(topic, keys[1], "beside"))
        run_until(consumer, lambda: "beside" in taker.done and "held" in taker.seen)
        assert "held" not in taker.done
        consumer.close()  # whoever comes next begins with it, and not after it
        taker.seen.clear()
        consumer = two.consumer(topic, taker)
        run_until(consumer, lambda: "held" in taker.seen)
        assert "before" not in taker.seen
        publish(two, note(topic, keys[1], "beside again"))
        run_until(consumer, lambda: "beside again" in taker.done)
        assert "held" not in taker.done
        assert two.value("tandem_kafka_consumed_total", topic=topic, outcome="again") >= 2
        taker.says["behind"] = WRONG
        seen = taker.seen.count("behind")
        run_until(consumer, lambda: taker.seen.count("behind") >= seen + 2)
        assert dead_letters.letters(partial(read_all, two.cluster), topic) == [], "nothing is buried before its turn"
        del taker.says["held"]
        run_until(consumer, lambda: "held" in taker.done)
        run_until(consumer, lambda: two.value("tandem_kafka_consumed_total", topic=topic, outcome="dead") == 1)
        assert len(dead_letters.letters(partial(read_all, two.cluster), topic)) == 1


def test_what_ends_a_run_loses_no_message(alone: Line) -> None:
    """Whatever it is: the next run's client begins with what was not handled."""
    topic = alone.cluster.topic("ended")

    class Ended(BaseException):
        """What no consumer knows."""

    taker, ending = Taker(), [Ended()]

    def handle(messages: Sequence[Incoming]) -> list[Verdict]:
        if ending:
            raise ending.pop()
        return taker(messages)

    publish(alone, note(topic, "k", "first"))
    consumer = alone.consumer(topic, handle)
    with pytest.raises(Ended):
        run_until(consumer, lambda: False)
    publish(alone, note(topic, "k", "second"))
    run_until(consumer, lambda: "second" in taker.done)
    assert taker.done == ["first", "second"]


def test_two_consumers_share_and_take_over(broker: Broker) -> None:
    """Each partition has one of them; when one leaves, the other goes on with its partitions, and misses nothing."""
    with line(broker, partitions=4) as four:
        topic = four.cluster.topic("shared")
        one, other = Taker(), Taker()
        first, second = four.consumer(topic, one), four.consumer(topic, other)
        numbers = count()

        def some() -> set[str]:
            """More messages, on all partitions."""
            sent = {f"{next(numbers)}" for _ in range(40)}
            publish(four, *(note(topic, f"key{text}", text) for text in sorted(sent)))
            return sent

        asked: set[str] = set()
        with Running(partial(first.run_once, 0.1), partial(second.run_once, 0.1)) as running:

            def both_have_some() -> bool:
                asked.update(some())
                return bool(one.done and other.done)

            eventually(both_have_some, 60)
            eventually(lambda: asked <= {*one.done, *other.done}, 60)
            with running.paused():
                second.close()
                taken = len(other.done)
            asked |= some()
            eventually(lambda: asked <= {*one.done, *other.done}, 60)
        assert len(other.done) == taken


def partition_keys(of: Line, topic: str) -> list[str]:
    """A key for each of two partitions."""
    found: dict[int, str] = {}

    def look(messages: Sequence[Incoming]) -> list[Verdict]:
        found.update((message.partition, message.key) for message in messages)
        return [None] * len(messages)

    consumer = of.consumer(topic, look)
    publish(of, *(note(topic, f"key{i}", "which") for i in range(12)))
    run_until(consumer, lambda: len(found) == 2)
    consumer.close()
    return [found[partition] for partition in sorted(found)]


def test_the_lag_and_its_age(alone: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is counted and has the age of the last that was done before it; nothing waits: the present time."""
    monkeypatch.setattr("tandem.kafka.consumer.LOOK_EVERY_S", 0.0)
    topic = alone.cluster.topic("lag")
    taker = Taker(held=BUSY)
    consumer = alone.consumer(topic, taker)
    before = time.time()

    def value(name: str) -> float:
        return alone.value(f"tandem_kafka_consumer_{name}", topic=topic)

    run_until(consumer, lambda: value("last_success_timestamp_seconds") >= before)
    assert value("lag") == 0
    publish(alone, *(note(topic, "k", text) for text in ("done", "held", "behind")))
    published = time.time()
    run_until(consumer, lambda: value("lag") == 2)
    run_until(consumer, lambda: value("last_success_timestamp_seconds") > published)
    assert before <= value("reached_timestamp_seconds") <= published
    del taker.says["held"]
    run_until(consumer, lambda: "behind" in taker.done)
    run_until(consumer, lambda: value("lag") == 0)
    assert value("reached_timestamp_seconds") > published


def test_a_broker_that_is_away_is_told_in_time_and_needs_no_restart(own_broker: Broker) -> None:
    """Publishing fails within its time while the broker is down; what is published afterwards arrives."""
    with line(own_broker) as made:
        topic = made.cluster.topic("away")
        taker = Taker()
        consumer = made.consumer(topic, taker)
        publish(made, note(topic, "k", "before"))
        run_until(consumer, lambda: "before" in taker.done)
        own_broker.stop()
        (answer,) = made.publisher.publish([note(topic, "k", "meanwhile")], until=time.monotonic() + 1)
        assert answer is not None
        assert answer.reason in (Reason.DEADLINE_PASSED, Reason.UNAVAILABLE)
        consumer.run_once(0.1)  # it has nothing to say, and does not raise
        own_broker.start()
        eventually(lambda: made.publisher.publish([note(topic, "k", "after")], until=time.monotonic() + 2) == [None])
        run_until(consumer, lambda: "after" in taker.done)


def test_what_no_broker_takes_is_refused_before_it_is_written() -> None:
    """A message above the limit never gets into an outbox, where it would stay."""
    event = events_pb2.ProfilesSettled(field="x" * MAX_VALUE_BYTES)
    with pytest.raises(InvalidRequest) as raised:
        outgoing("topic", "key", event)
    assert raised.value.reason is Reason.MESSAGE_TOO_LARGE


# --- dead letters ---------------------------------------------------------------------------------------------------


def test_what_can_never_be_done_is_buried_looked_at_and_replayed(alone: Line) -> None:
    """It holds up nobody; it is listed with its reason until it is replayed, and then taken up like any other."""
    topic, read = alone.cluster.topic("spoiled"), partial(read_all, alone.cluster)
    taker = Taker(poison=WRONG)
    consumer = alone.consumer(topic, taker)
    publish(alone, note(topic, "k", "poison"), note(topic, "k", "behind"))
    run_until(consumer, lambda: "behind" in taker.done)
    assert alone.value("tandem_kafka_dead_letters_total", topic=topic, reason="MALFORMED_MESSAGE") == 1
    (letter,) = dead_letters.letters(read, topic)
    assert (letter.reason, letter.kind, letter.message.key) == ("MALFORMED_MESSAGE", "tests.Note", "k")
    assert letter.origin.startswith(f"{topic}/")
    assert "poison" not in repr(letter) + str(letter.described())
    del taker.says["poison"]
    found = dead_letters.find(read, [topic], letter.place)
    dead_letters.replay(alone.publisher.publish, found, Operator("ann", "mended"))
    run_until(consumer, lambda: "poison" in taker.done)
    assert dead_letters.letters(read, topic) == []
    (replayed,) = dead_letters.letters(read, topic, replayed=True)
    assert replayed.replayed.endswith("by ann: mended")
    with pytest.raises(TandemError) as raised:
        dead_letters.find(read, [topic], f"{topic}.dead/0/99")
    assert raised.value.reason is Reason.NOT_FOUND


def test_a_letter_that_dies_again_says_how_often_it_was_replayed(alone: Line) -> None:
    """Each burial is a letter of its own."""
    topic, read = alone.cluster.topic("again"), partial(read_all, alone.cluster)
    taker = Taker(poison=WRONG)
    consumer = alone.consumer(topic, taker)
    publish(alone, note(topic, "k", "poison"))
    run_until(consumer, lambda: dead_letters.letters(read, topic))
    (first,) = dead_letters.letters(read, topic)
    dead_letters.replay(alone.publisher.publish, first, Operator("ann", "try"))
    run_until(consumer, lambda: dead_letters.letters(read, topic))
    (second,) = dead_letters.letters(read, topic)
    assert second.place != first.place
    assert second.described()["replays"] == 1


def test_a_handler_that_fails_takes_no_neighbour_with_it(alone: Line) -> None:
    """A mistake of ours over one message: the others are done, it is tried a few times, and then buried as INTERNAL."""
    topic = alone.cluster.topic("mistake")
    taker = Taker(mistake=RuntimeError("a mistake"))
    consumer = alone.consumer(topic, taker)
    publish(alone, *(note(topic, f"k{i}", f"well {i}") for i in range(6)), note(topic, "k", "mistake"))
    publish(alone, note(topic, "k", "behind"))
    run_until(consumer, lambda: "behind" in taker.done, within_s=30)
    assert {f"well {i}" for i in range(6)} < set(taker.done)
    (letter,) = dead_letters.letters(partial(read_all, alone.cluster), topic)
    assert letter.reason == "INTERNAL"


# --- the outbox and its relay -----------------------------------------------------------------------------------------


def write(engine: Engine, table: sa.Table, *messages: Outgoing) -> None:
    with engine.begin() as connection:
        outbox.add(connection, table, messages)


def waiting(engine: Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_the_relay_publishes_in_order_and_forgets(alone: Line, engine: Engine, table: sa.Table) -> None:
    """Two relays at once: each row goes, none twice without trouble, every key in its order; nothing stays."""
    topic = alone.cluster.topic("relayed")
    write(engine, table, *(note(topic, f"k{i % 7}", f"{i % 7}-{i:03}") for i in range(140)))
    relays = [Relay(engine, table, alone.publisher, alone.metrics, batch=10) for _ in range(2)]

    def run(relay: Relay) -> int:
        return sum(relay.run_once() for _ in range(60))

    assert sum(int(str(n)) for n in in_threads(*(partial(run, relay) for relay in relays))) == 140
    assert waiting(engine, table) == 0
    texts = [m.value.decode() for m in read_all(alone.cluster, topic)]
    assert len(texts) == 140
    for key in "0123456":
        mine = [text for text in texts if text.startswith(key)]
        assert mine == sorted(mine)


def test_what_is_rolled_back_is_never_published(alone: Line, engine: Engine, table: sa.Table) -> None:
    """The outbox is part of the local transaction."""
    topic = alone.cluster.topic("undone")
    with engine.connect() as connection:
        outbox.add(connection, table, [note(topic, "k", "undone")])
        connection.rollback()
    write(engine, table, note(topic, "k", "done"))
    assert Relay(engine, table, alone.publisher, alone.metrics).run_once() == 1
    assert [m.value for m in read_all(alone.cluster, topic)] == [b"done"]


def test_the_relay_waits_for_a_broker_that_is_away(own_broker: Broker, engine: Engine, table: sa.Table) -> None:
    """Rows stay, with the reason; the first success makes the rest due at once."""
    with line(own_broker) as made:
        topic = made.cluster.topic("patient")
        relay = Relay(engine, table, made.publisher, made.metrics)
        write(engine, table, note(topic, "k", "first"))
        assert relay.run_once() == 1
        own_broker.stop()
        write(engine, table, *(note(topic, f"k{i}", f"n{i}") for i in range(20)))
        assert relay.run_once() == 0
        with engine.connect() as connection:
            reasons = set(connection.execute(sa.select(table.c.last_error)).scalars())
        assert reasons <= {"DEADLINE_PASSED", "UNAVAILABLE"}
        own_broker.start()
        eventually(lambda: relay.run_once() and not waiting(engine, table))
        taker = Taker()
        run_until(made.consumer(topic, taker), lambda: {f"n{i}" for i in range(20)} <= set(taker.done))


def test_a_relay_that_dies_after_publishing_publishes_again(alone: Line, engine: Engine, table: sa.Table) -> None:
    """Its claim is a lease: another takes the row up after it."""
    topic = alone.cluster.topic("twice")
    write(engine, table, note(topic, "k", "twice"))
    dying = Relay(engine, table, alone.publisher, alone.metrics)
    dying._note = lambda published, failed: None  # type: ignore[method-assign]
    assert dying.run_once() == 1
    other = Relay(engine, table, alone.publisher, alone.metrics)
    assert other.run_once() == 0  # the lease still runs
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(next_attempt_at=sa.func.now()))
    assert other.run_once() == 1
    assert [m.value for m in read_all(alone.cluster, topic)] == [b"twice", b"twice"]


def test_a_row_that_no_broker_takes_is_in_nobodys_way(alone: Line, engine: Engine, table: sa.Table) -> None:
    """It stays with its reason; others go, and the broker does not count as away."""
    topic = alone.cluster.topic("large")
    relay = Relay(engine, table, alone.publisher, alone.metrics, batch=1)
    write(engine, table, note(topic, "a", "x" * 3_000_000), note(topic, "b", "small"))
    assert relay.run_once() + relay.run_once() == 1
    assert [m.value for m in read_all(alone.cluster, topic)] == [b"small"]
    with engine.connect() as connection:
        assert list(connection.execute(sa.select(table.c.last_error)).scalars()) == ["MESSAGE_TOO_LARGE"]
    write(engine, table, note(topic, "c", "later"))
    assert relay.run_once() == 1


def test_a_topic_that_can_not_be_had_is_in_nobodys_way(alone: Line, engine: Engine, table: sa.Table) -> None:
    """Its messages wait with the reason; those of other topics go, and the broker does not count as away."""
    topic, wrong = alone.cluster.topic("good"), alone.cluster.topic("no topic's name")
    relay = Relay(engine, table, alone.publisher, alone.metrics)
    write(engine, table, note(wrong, "a", "nowhere"), note(topic, "b", "there"))
    assert relay.run_once() == 1
    with engine.connect() as connection:
        assert list(connection.execute(sa.select(table.c.last_error)).scalars()) == ["REFUSED"]
    write(engine, table, note(topic, "c", "later"), note(topic, "d", "later, too"))
    assert relay.run_once() == 2


@pytest.mark.parametrize("known", ["when it is told", "when it publishes next"])
def test_a_producer_that_is_at_its_end_is_followed_by_another(alone: Line, known: str) -> None:
    """The broker has lost its place: librdkafka says so once, to whoever polls, and takes nothing more."""
    topic = alone.cluster.topic("place")
    publish(alone, note(topic, "k", "first"))
    producer = alone.publisher._producer
    assert producer is not None
    end(producer)
    if known == "when it publishes next":
        with pytest.raises(KafkaException):
            producer.poll(1)
    found = alone.publisher.publish([note(topic, "k", "lost")], until=time.monotonic() + 2)
    assert [error is not None for error in found] == [True]
    publish(alone, note(topic, "k", "second"))
    assert alone.publisher._producer is not producer


def end(producer: Producer) -> None:
    """librdkafka's own way to try what comes after a fatal error (rd_kafka_test_fatal_error)."""
    (library,) = Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka*")
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)
    loaded = ctypes.CDLL(str(library))
    loaded.rd_kafka_test_fatal_error.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]
    assert loaded.rd_kafka_test_fatal_error(handle, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, b"tried") == 0


# --- the inbox --------------------------------------------------------------------------------------------------------


def test_an_event_is_taken_once(engine: Engine) -> None:
    """By one local transaction that commits: a rolled back one leaves it, and what is put back comes again."""
    schema = f"s{uuid4().hex[:10]}"
    table = inbox.inbox_table(schema)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(schema))
        table.create(connection)
    some = sorted(TransactionKey("identity", uuid7()) for _ in range(3))
    with engine.connect() as connection:
        assert inbox.take(connection, table, some) == set(some)
        connection.rollback()
    with engine.begin() as connection:
        assert inbox.take(connection, table, some) == set(some)
        inbox.put_back(connection, table, some[:1])
        inbox.settle(connection, table, {some[1]: ("created", None), some[2]: ("rejected", "ALREADY_EXISTS")})
    with engine.begin() as connection:
        assert inbox.take(connection, table, some) == {some[0]}
    purge = inbox.Purge(engine, table, retention_ms=86_400_000)
    assert purge.run_once() == 0
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(received_at=sa.text("now() - interval '25 hours'")))
    assert purge.run_once() == 3
