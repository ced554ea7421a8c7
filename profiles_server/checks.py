"""Whether an entity can be stored: the rules of its contract, and the one character that PostgreSQL can't hold."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from tandem.runtime.errors import MAX_VIOLATIONS, InvalidRequest, Violation
from tandem.runtime.validation import violations

NUL = "\0"


def check(entity: Message, *more: Violation) -> None:
    """Raises InvalidRequest that names the fields that can't be stored, `more` of them included."""
    found = [*more, *violations(entity), *_holding_nul(entity)][:MAX_VIOLATIONS]
    if found:
        raise InvalidRequest(found)


def _holding_nul(entity: Message) -> list[Violation]:
    # Also true of some messages without one, never false of one with it; and much quicker than the walk.
    if NUL.encode() not in entity.SerializeToString():
        return []
    return [Violation(path, "must not hold a NUL character", "text.nul") for path in _paths_to_nul(entity, "")]


def _paths_to_nul(message: Message, parent: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = parent + field.name
        if isinstance(value, (str, Message)):
            elements = [(path, value)]
        elif isinstance(value, (int, float, bytes)):
            continue
        else:
            elements = [(f"{path}[{position}]", element) for position, element in enumerate(value)]
        for where, element in elements:
            if isinstance(element, Message):
                yield from _paths_to_nul(element, f"{where}.")
            elif isinstance(element, str) and NUL in element:
                yield where
