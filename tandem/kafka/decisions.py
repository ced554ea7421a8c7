"""Decisions that travel by Kafka: the initiator publishes Commit instead of calling it, the participant consumes it.

The decision log is the outbox: `undelivered` then means that the broker has not acknowledged, the driver's confirm and
recovery are the relay. The participant's own table is the inbox: a Commit that comes again is answered as before. What
gets lost on the way is found by the participant's sweeper, which asks the log, as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tandem.kafka.config import Cluster
from tandem.kafka.handling import Dead, Handler, Later, Verdict, read_each
from tandem.kafka.messages import Incoming, Outgoing, outgoing
from tandem.kafka.publisher import Publisher
from tandem.runtime.errors import CONTRADICTIONS, PAGING, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.wire import key_from, key_to
from tandem.v1 import participant_pb2, transaction_pb2

Ended = TandemError | None

FINAL = PAGING | CONTRADICTIONS | {Reason.COORDINATOR_UNKNOWN}
"""Answers to a Commit that no repeat can change."""


def topic(cluster: Cluster, participant: str) -> str:
    """Where the decisions for one participant are published, whoever coordinates."""
    return cluster.topic("commits", participant)


class PublishedCommits:
    """How a coordinator delivers its decisions: `Coordinator(commits=PublishedCommits(…))`."""

    def __init__(self, cluster: Cluster, publisher: Publisher) -> None:
        self._cluster = cluster
        self._publisher = publisher

    def commit(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[Ended]]:
        """Publishes each decision, by participant: None for each that the broker has acknowledged."""
        messages = [self._message(name, key, by) for name, keys in asked.items() for key in keys]
        answers = iter(self._publisher.publish(messages, until=until))
        return {name: [next(answers) for _ in keys] for name, keys in asked.items()}

    def _message(self, participant: str, key: TransactionKey, by: transaction_pb2.ResolvedBy.ValueType) -> Outgoing:
        request = participant_pb2.CommitRequest(key=key_to(key), resolved_by=by)
        return outgoing(topic(self._cluster, participant), str(key.transaction_id), request)


def committing(commit: Callable[[Sequence[TransactionKey]], Sequence[Ended]]) -> Handler:
    """A handler that commits what it is told: `commit` is the participant's own, answered as a Commit by RPC would be.

    A contradiction (R5) was counted by the participant, which pages; the message is buried for whoever looks into it.
    """

    def handle(messages: Sequence[Incoming]) -> list[Verdict]:
        keys, verdicts = read_each(messages, lambda message: key_from(message.read(participant_pb2.CommitRequest).key))
        asked = sorted(set(keys.values()))
        answers = dict(zip(asked, commit(asked), strict=True)) if asked else {}
        for place, key in keys.items():
            answer = answers[key]
            if answer is None:
                verdicts[place] = None
            else:
                verdicts[place] = Dead(answer) if answer.reason in FINAL else Later(answer)
        return [verdicts[place] for place in range(len(messages))]

    return handle
