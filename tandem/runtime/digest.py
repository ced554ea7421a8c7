"""What was asked to be staged, as 32 bytes that both sides and every language compute alike (design §3).

write        SHA-256( 0x01 ‖ len(type_url) ‖ type_url ‖ len(value) ‖ value )      lengths: 8 bytes, big-endian
transaction  SHA-256( the writes' digests, one after the other )
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from google.protobuf.any_pb2 import Any

VERSION = b"\x01"
SIZE = 32


def write_digest(write: Any) -> bytes:
    """The digest of one write: 32 bytes over its type and its bytes as they came."""
    type_url = write.type_url.encode()
    parts = (VERSION, len(type_url).to_bytes(8, "big"), type_url, len(write.value).to_bytes(8, "big"), write.value)
    return hashlib.sha256(b"".join(parts)).digest()


def write_digests(writes: Iterable[Any]) -> bytes:
    """The digests of the writes in order, joined: 32 bytes a write."""
    return b"".join(write_digest(write) for write in writes)


def transaction_digest(digests: bytes) -> bytes:
    """The digest of a transaction: 32 bytes over its writes' joined digests."""
    return hashlib.sha256(digests).digest()


def differing(ours: bytes, theirs: bytes) -> Sequence[int]:
    """The positions of the writes whose digests differ, missing ones included."""
    count = max(len(ours), len(theirs)) // SIZE
    return [i for i in range(count) if ours[i * SIZE : (i + 1) * SIZE] != theirs[i * SIZE : (i + 1) * SIZE]]
