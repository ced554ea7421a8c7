"""Takes messages up: at least once, in order within a partition, and the offset only after the work is durable.

A message that can't be done now holds up its partition, and no other: what comes after it may need it. One that can
never be done is buried in `<topic>.dead`, for a person.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tandem.kafka import dead_letters, topics
from tandem.kafka.config import Cluster
from tandem.kafka.handling import Dead, Handler, Later, Verdict
from tandem.kafka.messages import Incoming
from tandem.kafka.metrics import KafkaMetrics
from tandem.kafka.publisher import Publisher
from tandem.kafka.reading import incoming
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.kafka")

WAIT_S = 1.0
"""How long a run waits for the first message."""

MAX_ROUNDS = 100
"""Batches in one run; what is left waits for the next."""

PAUSE_S = 1.0
"""How long a partition rests whose next message could not be done."""

MAX_ATTEMPTS = 5
"""How often a message is tried that fails for no known reason, before it is buried."""

BURY_S = 2.0
LOOK_EVERY_S = 5.0
LOOK_S = 1.0
CLOSE_S = 10.0


_Partition = tuple[str, int]


class Consumer:
    """`run_once()` takes what waits in one topic and has it handled. Replicas share the partitions among them.

    group: the consumer group's name, without the prefix; never reused for another work. batch: messages at a time.
    clock: wall time in s, for gauges only.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        handle: Handler,
        *,
        group: str,
        publisher: Publisher,
        metrics: KafkaMetrics,
        batch: int = 500,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._topics = (topic, dead_letters.topic_of(topic))
        self._handle = handle
        self._group = cluster.topic(group)
        self._publisher = publisher
        self._metrics = metrics
        self._batch = batch
        self._clock = clock
        self._client: Client | None = None
        self._running = threading.Lock()
        self._closed = False
        self._resting: dict[_Partition, float] = {}
        self._attempts: dict[tuple[_Partition, int], int] = {}
        self._next: dict[_Partition, int] = {}
        self._reached: dict[_Partition, float] = {}
        self._look_at = 0.0
        metrics.serve(topic)

    def __repr__(self) -> str:
        return f"Consumer({self._topic!r}, group={self._group!r})"

    def run_once(self, wait_s: float = WAIT_S) -> int:
        """One run: how many messages were done. Raises TandemError where the broker can't serve.

        Whatever it raises, its client goes: that one's place may be behind messages that nobody has handled.
        """
        with self._running:
            if self._closed:
                return 0
            client = self._opened()
            done = 0
            try:
                for _ in range(MAX_ROUNDS):
                    self._resume(client)
                    messages = self._take(client, wait_s)
                    if not messages:
                        break
                    failpoint("consumer.after_poll")
                    done += self._work(client, messages)
                    wait_s = 0.0
                self._look(client)
            except KafkaException as error:  # one that can't go on: the next run makes another
                log.warning("consumer given up", topic=self._topic, kafka=error.args[0].name())
                self._drop(client)
            except BaseException:
                self._drop(client)
                raise
            return done

    def close(self) -> None:
        """Leaves the group, once a run has ended. Idempotent."""
        self._closed = True
        if not self._running.acquire(timeout=CLOSE_S):
            return  # the group does without it after the session's timeout
        try:
            client, self._client = self._client, None
            if client is not None:
                client.close()
        finally:
            self._running.release()

    def _drop(self, client: Client) -> None:
        """The next run makes another, which begins after what was committed."""
        self._client = None
        client.close()

    def _opened(self) -> Client:
        if self._client is None:
            topics.ensure(self._cluster, self._topics)
            instance = {"group.instance.id": self._cluster.instance} if self._cluster.instance else {}
            self._client = Client(
                {
                    **self._cluster.reach(),
                    **instance,
                    "group.id": self._group,
                    "client.id": self._group,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "earliest",  # a group that is new must miss nothing
                    "session.timeout.ms": int(self._cluster.session_s * 1000),
                    "heartbeat.interval.ms": int(self._cluster.session_s * 250),
                    "fetch.wait.max.ms": 100,
                    "fetch.error.backoff.ms": 100,
                    "queued.max.messages.kbytes": 16 * 1024,
                }
            )
            self._client.subscribe([self._topic], on_assign=self._assigned)
        return self._client

    def _assigned(self, _: Client, partitions: Sequence[TopicPartition]) -> None:
        """What was known of the former share says nothing of this one; but what rests may have to be woken still."""
        self._next.clear()
        self._reached = {(one.topic, one.partition): self._clock() for one in partitions}

    # --- taking -----------------------------------------------------------------------------------------------

    def _take(self, client: Client, wait_s: float) -> list[Incoming]:
        """What is there. Waits for the first, and for no other. Raises KafkaException where the client can't go on."""
        first = client.poll(wait_s)
        if first is None:
            return []
        some = [first, *client.consume(self._batch - 1, 0)] if self._batch > 1 else [first]
        errors = [error for one in some if (error := one.error()) is not None]
        for error in errors:
            _unless_fatal(error)
            log.warning("message not taken", topic=self._topic, kafka=error.name())
        if any(error.name() == topics.MISSING for error in errors):  # a broker that has lost its data
            topics.ensure(self._cluster, self._topics)
        return [incoming(one) for one in some if one.error() is None]

    def _resume(self, client: Client) -> None:
        """Lets partitions go on whose rest is over."""
        now = time.monotonic()
        rested = [partition for partition, until in self._resting.items() if until <= now]
        self._resting = {partition: until for partition, until in self._resting.items() if until > now}
        for partition in rested:
            try:
                client.resume([TopicPartition(*partition)])
            except KafkaException:  # another replica's meanwhile
                continue

    # --- working ----------------------------------------------------------------------------------------------

    def _work(self, client: Client, messages: Sequence[Incoming]) -> int:
        """Has them handled, buries the dead, commits what is done: how many were.

        Of each partition up to the first that can't be done now. What is behind it comes again, and is buried then.
        """
        verdicts = dict(zip(map(str, messages), self._verdicts(messages), strict=True))
        by_partition: dict[_Partition, list[Incoming]] = defaultdict(list)
        for message in messages:
            by_partition[message.topic, message.partition].append(message)
        reached = [message for some in by_partition.values() for message in _before_waiting(some, verdicts)]
        verdicts |= self._bury([m for m in reached if isinstance(verdicts[str(m)], Dead)], verdicts)
        failpoint("consumer.after_handle")
        offsets: list[TopicPartition] = []
        done = 0
        for partition, some in by_partition.items():
            taken = _before_waiting(some, verdicts)
            for message in taken:
                self._attempts.pop((partition, message.offset), None)
            if len(taken) < len(some):
                verdict = verdicts[str(some[len(taken)])]
                assert isinstance(verdict, Later)
                self._rest(client, some[len(taken)], verdict.error)
            self._metrics.consumed.labels(self._topic, "again").inc(len(some) - len(taken))
            if taken:
                last = taken[-1]
                offsets.append(TopicPartition(*partition, last.offset + 1))
                self._next[partition] = last.offset + 1
                self._reached[partition] = self._clock() if last.at is None else last.at
                dead = sum(isinstance(verdicts[str(m)], Dead) for m in taken)
                self._metrics.consumed.labels(self._topic, "dead").inc(dead)
                self._metrics.consumed.labels(self._topic, "done").inc(len(taken) - dead)
                done += len(taken) - dead
        self._commit(client, offsets)
        return done

    def _verdicts(self, messages: Sequence[Incoming]) -> list[Verdict]:
        try:
            verdicts = list(self._handle(messages))
        except Exception as error:  # whatever it is: nothing of it is done, and some message may be to blame
            log.error("messages not handled", topic=self._topic, exception=frames(error))
            if len(messages) > 1:
                return self._one_by_one(messages)
            verdicts = [Later(TandemError("the handler failed"))]
        return [self._patience(message, verdict) for message, verdict in zip(messages, verdicts, strict=True)]

    def _one_by_one(self, messages: Sequence[Incoming]) -> list[Verdict]:
        """Each by itself, up to the first of its partition that fails again."""
        verdicts: list[Verdict] = []
        stopped: set[_Partition] = set()
        for message in messages:
            partition = (message.topic, message.partition)
            verdict: Verdict
            if partition in stopped:
                verdict = Later(TandemError("one before it failed", reason=Reason.IN_PROGRESS))
            else:
                try:
                    (verdict,) = self._handle([message])
                except Exception as error:  # as above
                    log.error("message not handled", message=str(message), exception=frames(error))
                    verdict = Later(TandemError("the handler failed"))
                verdict = self._patience(message, verdict)
            if isinstance(verdict, Later):
                stopped.add(partition)
            verdicts.append(verdict)
        return verdicts

    def _patience(self, message: Incoming, verdict: Verdict) -> Verdict:
        """A mistake that nobody knows the reason of is not waited for for ever."""
        if not isinstance(verdict, Later) or verdict.error.reason is not Reason.INTERNAL:
            return verdict
        which = ((message.topic, message.partition), message.offset)
        self._attempts[which] = self._attempts.get(which, 0) + 1
        return Dead(verdict.error) if self._attempts[which] >= MAX_ATTEMPTS else verdict

    def _bury(self, messages: Sequence[Incoming], verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
        """Publishes them to the dead-letter topic; Later for those that could not be."""
        if not messages:
            return {}
        reasons = [verdict.error for m in messages if isinstance(verdict := verdicts[str(m)], Dead)]
        letters = [dead_letters.letter(m, e, group=self._group) for m, e in zip(messages, reasons, strict=True)]
        failed: dict[str, Verdict] = {}
        published = self._publisher.publish(letters, until=time.monotonic() + BURY_S)
        for message, reason, error in zip(messages, reasons, published, strict=True):
            if error is not None:
                failed[str(message)] = Later(error)
                continue
            self._metrics.dead_letters.labels(self._topic, reason.reason.value).inc()
            log.error("buried", message=str(message), reason=reason.reason.value)
        return failed

    def _rest(self, client: Client, message: Incoming, error: TandemError) -> None:
        """Goes back to this message, and gives its partition a rest."""
        partition = (message.topic, message.partition)
        log.warning("left for later", message=str(message), reason=error.reason.value)
        try:
            client.seek(TopicPartition(*partition, message.offset))
            client.pause([TopicPartition(*partition)])
        except KafkaException as lost:  # another replica has the partition now, and begins where we committed
            log.info("partition gone", message=str(message), kafka=lost.args[0].name())
        else:
            self._resting[partition] = time.monotonic() + PAUSE_S

    def _commit(self, client: Client, offsets: Sequence[TopicPartition]) -> None:
        """Tells the broker. What can't be told is taken up again, here or by another replica."""
        if not offsets:
            return
        try:
            client.commit(offsets=list(offsets), asynchronous=False)
        except KafkaException as error:
            _unless_fatal(error.args[0])
            log.warning("offsets not committed", topic=self._topic, kafka=error.args[0].name())
        failpoint("consumer.after_commit")

    # --- looking ----------------------------------------------------------------------------------------------

    def _look(self, client: Client) -> None:
        """How far behind this is, asked of the broker now and then."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_EVERY_S
        now = self._clock()
        lag, reached = 0, now
        try:
            client.list_topics(self._topic, timeout=LOOK_S)  # what follows may be known without the broker
            for place in client.assignment():
                partition = (place.topic, place.partition)
                low, high = client.get_watermark_offsets(place, cached=True)  # as of the last fetch
                if high < 0:
                    low, high = client.get_watermark_offsets(place, timeout=LOOK_S)
                if partition not in self._next:
                    (committed,) = client.committed([place], timeout=LOOK_S)
                    self._next[partition] = max(committed.offset, low)
                behind = max(0, high - self._next[partition])
                lag += behind
                if not behind:
                    self._reached[partition] = now
                reached = min(reached, self._reached.get(partition, now))
        except KafkaException as error:
            _unless_fatal(error.args[0])
            log.warning("lag not known", topic=self._topic, kafka=error.args[0].name())
            return
        self._metrics.lag.labels(self._topic).set(lag)
        self._metrics.oldest.labels(self._topic).set(reached)
        self._metrics.consumer_last_success.labels(self._topic).set(now)


def _unless_fatal(error: KafkaError) -> None:
    """Raises KafkaException after an error that ends its client."""
    if topics.ends_client(error):
        raise KafkaException(error)


def _before_waiting(some: Sequence[Incoming], verdicts: Mapping[str, Verdict]) -> list[Incoming]:
    """Those of a partition that come before the first that can't be done now."""
    return list(takewhile(lambda message: not isinstance(verdicts[str(message)], Later), some))
