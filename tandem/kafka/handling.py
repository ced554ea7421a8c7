"""What a handler of messages says of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tandem.kafka.messages import Incoming
from tandem.runtime.errors import InvalidRequest, TandemError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Later:
    """It can't be done now: it is tried again, and nothing after it in its partition counts as taken up before."""

    error: TandemError


@dataclass(frozen=True, slots=True)
class Dead:
    """No repeat can change it: it is buried."""

    error: TandemError


Verdict = Later | Dead | None
"""None: done, and durable."""

Handler = Callable[[Sequence[Incoming]], Sequence[Verdict]]
"""Does the work of some messages, each partition's in its order; a verdict each. What it says is done may be asked
again."""


def read_each(messages: Sequence[Incoming], read: Callable[[Incoming], T]) -> tuple[dict[int, T], dict[int, Verdict]]:
    """Place → what the message there says, and place → Dead for those where `read` raises InvalidRequest."""
    said: dict[int, T] = {}
    verdicts: dict[int, Verdict] = {}
    for place, message in enumerate(messages):
        try:
            said[place] = read(message)
        except InvalidRequest as error:
            verdicts[place] = Dead(error)
    return said, verdicts
