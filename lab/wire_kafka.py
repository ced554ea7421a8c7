"""Kafka's wire, as far as the fault proxy must know it: a broker tells its clients its own address.

Whoever has asked for metadata, or for its group's coordinator, goes on with the address in the answer, past any proxy.
So the proxy puts its own port there. https://kafka.apache.org/protocol: a node is its host, as a string, and its port,
four bytes, in every version; no answer is compressed as a whole. No TLS.
"""

from __future__ import annotations

import struct


class Replies:
    """Splits what a broker sends into whole answers, with `ours` in the place of the port of `broker` (host:port)."""

    def __init__(self, broker: str, ours: int) -> None:
        host, _, port = broker.rpartition(":")
        self._theirs = host.encode() + struct.pack(">I", int(port))
        self._ours = host.encode() + struct.pack(">I", ours)
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The answers that are whole now."""
        self._buffer += data
        answers: list[bytes] = []
        while len(self._buffer) >= 4:
            size = 4 + int.from_bytes(self._buffer[:4])
            if len(self._buffer) < size:
                break
            answers.append(self._buffer[:size].replace(self._theirs, self._ours))
            self._buffer = self._buffer[size:]
        return answers
