"""PostgreSQL's wire, as far as the fault proxy must know it: where a client's message begins and ends.

https://www.postgresql.org/docs/current/protocol-message-formats.html. No TLS: connect with sslmode=disable.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_START = 4
"""Bytes before the type: the first messages of a connection have only a length."""

_NOT_YET_STARTED = frozenset({80877103, 80877104})
"""SSLRequest and GSSENCRequest: another untyped message follows."""

COMMAND_COMPLETE_COMMIT = b"C" + struct.pack(">I", 11) + b"COMMIT\0"
READY_IDLE = b"Z" + struct.pack(">I", 5) + b"I"


def query(text: str) -> bytes:
    """The message of the simple query protocol, which psycopg2 speaks."""
    content = text.encode() + b"\0"
    return b"Q" + struct.pack(">I", 4 + len(content)) + content


COMMIT = query("COMMIT")
COMMIT_REPLY = COMMAND_COMPLETE_COMMIT + READY_IDLE


def is_query(starts: str) -> Callable[[bytes], bool]:
    """Whether a message is a simple query whose text starts so."""
    wanted = starts.encode()
    return lambda message: message[:1] == b"Q" and message[5 : 5 + len(wanted)] == wanted


class ClientMessages:
    """Splits what a client sends into whole messages; a part of one waits for its rest."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now."""
        self._buffer += data
        messages: list[bytes] = []
        while (size := self._size()) is not None and len(self._buffer) >= size:
            message, self._buffer = self._buffer[:size], self._buffer[size:]
            if not self._started:
                (code,) = struct.unpack(">I", message[_START : _START + 4])
                self._started = code not in _NOT_YET_STARTED
            messages.append(message)
        return messages

    def _size(self) -> int | None:
        at = 1 if self._started else 0
        if len(self._buffer) < at + 4:
            return None
        (length,) = struct.unpack(">I", self._buffer[at : at + 4])
        return at + int(length)
