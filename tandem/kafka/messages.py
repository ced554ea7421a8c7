"""A message on its way out, and one that came in: a protobuf message, its type in a header, its key for the order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tandem.runtime.errors import InvalidRequest, Reason, Violation
from tandem.runtime.validation import validate

M = TypeVar("M", bound=Message)

TYPE = "type"
"""The header with the full name of the protobuf message."""

MAX_VALUE_BYTES = 900_000
"""Of one message: below what a broker takes by default (1 MiB with everything around it)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """To be published. Messages with one key keep their order. repr leaves the content out: it may be personal."""

    topic: str
    key: str
    value: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Incoming:
    """Taken from a topic. at: when it was published, in s since 1970; None where the broker does not say.

    Nothing of it was checked. repr leaves the content out.
    """

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    at: float | None = None

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    def read(self, kind: type[M]) -> M:
        """The message in it. Raises InvalidRequest: UNKNOWN_TYPE, MALFORMED_MESSAGE, or a rule that it breaks."""
        name = kind.DESCRIPTOR.full_name
        if self.headers.get(TYPE) != name:
            raise InvalidRequest([Violation(TYPE, f"must be {name}")], reason=Reason.UNKNOWN_TYPE)
        try:
            message = kind.FromString(self.value)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidRequest(
                [Violation("value", "is not a message of its type")], reason=Reason.MALFORMED_MESSAGE
            ) from None
        validate(message)
        return message


def outgoing(topic: str, key: str, message: Message) -> Outgoing:
    """The message, ready to go. Raises InvalidRequest where no broker would take it."""
    value = message.SerializeToString(deterministic=True)
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidRequest(
            [Violation("value", f"is {len(value):,} bytes; {MAX_VALUE_BYTES:,} can be published")],
            reason=Reason.MESSAGE_TOO_LARGE,
        )
    return Outgoing(topic, key, value, {TYPE: message.DESCRIPTOR.full_name})
