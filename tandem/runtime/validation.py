"""Shape rules: protovalidate's annotations in the contracts, turned into violations without the offending values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tandem.runtime.errors import MAX_VIOLATIONS, InvalidRequest, Violation

IGNORE_ALWAYS = 3
"""Of buf.validate.Ignore."""

_validator = protovalidate.Validator()


def violations(message: Message) -> list[Violation]:
    """What is wrong with the message's shape; at most MAX_VIOLATIONS."""
    too_long = _lists_too_long(message, "")
    if too_long:
        return too_long[:MAX_VIOLATIONS]
    found = _validator.collect_violations(message)
    return [
        Violation(_path(v.proto), v.proto.message or f"breaks the rule {v.proto.rule_id}", v.proto.rule_id or "")
        for v in found[:MAX_VIOLATIONS]
    ]


def validate(message: Message) -> None:
    """Raises InvalidRequest if the message breaks a rule of its contract."""
    found = violations(message)
    if found:
        raise InvalidRequest(found)


class _Nested(NamedTuple):
    """A field that is a list, or that has lists below it. most: how many items the contract allows; None: any."""

    name: str
    repeated: bool
    most: int | None
    is_message: bool


def _lists_too_long(message: Message, path: str) -> list[Violation]:
    """Lists with more items than their contract allows, found before a rule looks at each item, or at pairs of them."""
    found: list[Violation] = []
    for field in _nested(message.DESCRIPTOR):
        value = getattr(message, field.name)
        if not field.repeated:
            if message.HasField(field.name):
                found += _lists_too_long(value, f"{path}{field.name}.")
        elif field.most is not None and len(value) > field.most:
            found.append(Violation(path + field.name, f"must hold at most {field.most} items", "repeated.max_items"))
        elif field.is_message:
            for position, item in enumerate(value):
                found += _lists_too_long(item, f"{path}{field.name}[{position}].")
    return found


@cache
def _nested(descriptor: Descriptor) -> Sequence[_Nested]:
    """The fields of a message that `_lists_too_long` must look at. Only in messages of ours: they nest in no circle."""
    fields = []
    for field in descriptor.fields:
        below = field.message_type is not None and field.message_type.full_name.startswith("tandem.")
        most, ignored = _limits(field)
        is_message = below and not ignored and bool(_nested(field.message_type))
        if field.is_repeated or is_message:
            fields.append(_Nested(field.name, field.is_repeated, most, is_message))
    return tuple(fields)


def _limits(field: FieldDescriptor) -> tuple[int | None, bool]:
    """How many items a list may have, and whether the contract leaves what is in it to be validated by itself."""
    for extension, rules in field.GetOptions().ListFields():
        if extension.full_name == "buf.validate.field":
            most = int(rules.repeated.max_items) if rules.repeated.HasField("max_items") else None
            return most, IGNORE_ALWAYS in (rules.ignore, rules.repeated.items.ignore)
    return None, False


def _path(violation: protovalidate.ViolationPb) -> str:
    """The field's path as clients write it: `person.email_addresses[2]`."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += ("." if path else "") + (element.field_name or "")
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value}]"
    return path
