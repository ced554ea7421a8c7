"""What was buried: how a letter is made, and how a person looks at the letters of a topic and replays one.

A letter is the message as it came, with headers that say where from and why. A replay publishes it again where it came
from, under its own key, and leaves a note in the dead-letter topic, so that nothing is forgotten and nothing is listed
for ever. Whoever takes it up knows it by its inbox: what had been done is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from tandem.kafka.messages import TYPE, Incoming, Outgoing
from tandem.runtime.actions import Operator
from tandem.runtime.errors import Reason, TandemError

SUFFIX = ".dead"

ORIGIN, REASON, GROUP, BURIED_AT = "dead-letter.of", "dead-letter.reason", "dead-letter.group", "dead-letter.at"
REPLAYED, ACTOR, WHY = "dead-letter.replayed", "dead-letter.actor", "dead-letter.why"
NOTE = "dead-letter.note"
"""The type of a note, which holds no message."""

REPLAYS = "replays"
"""The header that says how often a message was replayed."""

REPLAY_S = 5.0

Read = Callable[[str], Sequence[Incoming]]
"""What is in a topic now: `reading.read_all`."""


class Publish(Protocol):
    """`Publisher.publish`."""

    def __call__(self, messages: Sequence[Outgoing], *, until: float) -> Sequence[TandemError | None]: ...


@dataclass(frozen=True, slots=True)
class Graveyard:
    """Where a process's messages are buried. topics: those that it consumes. read: `reading.read_all`, of a topic."""

    topics: Sequence[str]
    read: Read
    publish: Publish


def topic_of(topic: str) -> str:
    """Where the messages of a topic are buried."""
    return f"{topic}{SUFFIX}"


def letter(message: Incoming, error: TandemError, *, group: str) -> Outgoing:
    """The message as it came, ready to be buried. group: the consumers that could not take it up."""
    about = {
        ORIGIN: str(message),
        REASON: error.reason.value,
        GROUP: group,
        BURIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    return Outgoing(topic_of(message.topic), message.key, message.value, {**message.headers, **about})


@dataclass(frozen=True, slots=True)
class Letter:
    """One buried message. place: topic/partition/offset of the letter; origin: of the message as it came. replayed: who
    replayed it, when and why; "" where nobody has. repr leaves the content out.
    """

    message: Incoming
    replayed: str = ""

    @property
    def place(self) -> str:
        return str(self.message)

    @property
    def origin(self) -> str:
        return self.message.headers.get(ORIGIN, "")

    @property
    def reason(self) -> str:
        return self.message.headers.get(REASON, "")

    @property
    def kind(self) -> str:
        return self.message.headers.get(TYPE, "")

    @property
    def at(self) -> str:
        return self.message.headers.get(BURIED_AT, "")

    def described(self) -> dict[str, object]:
        """All that may be shown of it: nothing of its content, which may be personal."""
        return {
            "place": self.place,
            "type": self.kind,
            "key": self.message.key,
            "reason": self.reason,
            "came_from": self.origin,
            "group": self.message.headers.get(GROUP, ""),
            "buried_at": self.at,
            "bytes": len(self.message.value),
            "replays": int(self.message.headers.get(REPLAYS, "0")),
            "replayed": self.replayed,
        }


def letters(read: Read, topic: str, *, replayed: bool = False) -> list[Letter]:
    """The letters of `topic`, the oldest of each partition first. replayed: those that were replayed, too."""
    found: dict[str, Letter] = {}
    for message in read(topic_of(topic)):
        if message.headers.get(TYPE) != NOTE:
            one = Letter(message)
            found[one.place] = one
            continue
        of, headers = message.headers.get(REPLAYED, ""), message.headers
        said = f"{headers.get(BURIED_AT, '')} by {headers.get(ACTOR, '')}: {headers.get(WHY, '')}"
        if of in found:
            found[of] = replace(found[of], replayed=said)
    return [one for one in found.values() if replayed or not one.replayed]


def find(read: Read, topics: Sequence[str], place: str) -> Letter:
    """One letter of these topics. Raises TandemError: NOT_FOUND."""
    of = place.rpartition("/")[0].rpartition("/")[0]
    for topic in topics:
        if topic_of(topic) == of:
            for one in letters(read, topic, replayed=True):
                if one.place == place:
                    return one
    raise TandemError("there is no dead letter at this place", reason=Reason.NOT_FOUND)


def replay(publish: Publish, one: Letter, by: Operator) -> None:
    """Publishes it again where it came from, then leaves the note. Raises why either could not be done.

    Where only the note failed, the letter stays listed, and to replay it again does no harm.
    """
    ours = (ORIGIN, REASON, GROUP, BURIED_AT)
    headers = {name: value for name, value in one.message.headers.items() if name not in ours}
    topic = one.message.topic.removesuffix(SUFFIX)
    headers[REPLAYS] = str(int(headers.get(REPLAYS, "0")) + 1)
    again = Outgoing(topic, one.message.key, one.message.value, headers)
    about = {
        TYPE: NOTE,
        REPLAYED: one.place,
        ACTOR: by.actor,
        WHY: by.reason,
        BURIED_AT: datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    # The same key: the note comes after its letter, in the same partition.
    for message in (again, Outgoing(one.message.topic, one.message.key, b"", about)):
        (error,) = publish([message], until=time.monotonic() + REPLAY_S)
        if error is not None:
            raise error
