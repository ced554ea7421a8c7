"""Field masks: which fields of an entity an update may name, and how their new values get into it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from tandem.runtime.errors import Violation

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Mask:
    """The fields of an entity that may be changed.

    fixed: top-level fields that may not. nested: the one field whose own fields may be named, too ("name.suffix").
    """

    fixed: frozenset[str]
    nested: str

    def wrong(self, entity: Message, paths: Sequence[str]) -> list[Violation]:
        """A violation for each path that names nothing that may be changed. The path itself is not repeated."""
        return [
            Violation(f"update_mask.paths[{position}]", "is not a field that can be changed here")
            for position, path in enumerate(paths)
            if not self._allows(entity, path)
        ]

    def _allows(self, entity: Message, path: str) -> bool:
        field, dot, part = path.partition(".")
        if field not in entity.DESCRIPTOR.fields_by_name or field in self.fixed:
            return False
        if not dot:
            return True
        nested = entity.DESCRIPTOR.fields_by_name[field].message_type
        return field == self.nested and nested is not None and part in nested.fields_by_name


def merged(current: M, new: M, paths: Sequence[str]) -> M:
    """`current` with the fields of `paths` (all allowed) as they are in `new`: a field not set there is cleared."""
    result = type(current)()
    result.CopyFrom(current)
    for path in paths:
        field, dot, part = path.partition(".")
        source: Message = getattr(new, field) if dot else new
        # Clearing a part of what isn't there must not bring it into being.
        if dot and not result.HasField(field) and not _is_set(source, part):
            continue
        target: Message = getattr(result, field) if dot else result
        _copy(source, target, part if dot else field)
    return result


def _is_set(message: Message, name: str) -> bool:
    return any(field.name == name for field, _ in message.ListFields())


def _copy(source: Message, target: Message, name: str) -> None:
    target.ClearField(name)
    if not _is_set(source, name):
        return
    value = getattr(source, name)
    if isinstance(value, Message):
        getattr(target, name).CopyFrom(value)
    elif isinstance(value, (str, int)):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)
