"""Small translations between the contracts' messages and Python values, shared by both halves."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from tandem.runtime.identifiers import TransactionKey
from tandem.v1 import transaction_pb2


def key_from(message: transaction_pb2.TransactionKey) -> TransactionKey:
    """The key of a validated message."""
    return TransactionKey(message.coordinator, UUID(message.transaction_id))


def key_to(key: TransactionKey) -> transaction_pb2.TransactionKey:
    """The message of a key."""
    return transaction_pb2.TransactionKey(coordinator=key.coordinator, transaction_id=str(key.transaction_id))


def timestamp(at: datetime | None) -> Timestamp | None:
    """The message of a point in time."""
    if at is None:
        return None
    message = Timestamp()
    message.FromDatetime(at)
    return message
