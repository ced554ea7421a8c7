"""Shape rules: protovalidate's annotations in the contracts, turned into violations without the offending values."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from tandem.runtime.errors import InvalidRequest, Violation

MAX_VIOLATIONS = 20

_validator = protovalidate.Validator()


def violations(message: Message) -> list[Violation]:
    """What is wrong with the message's shape; at most MAX_VIOLATIONS."""
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


def _path(violation: protovalidate.ViolationPb) -> str:
    """The field's path as clients write it: `person.email_addresses[2]`."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += ("." if path else "") + (element.field_name or "")
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value}]"
    return path
