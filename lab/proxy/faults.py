"""What can be done to a connection, and at which of its bytes: faults, cues, and framings that cues look through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

Predicate = Callable[[bytes], bool]


class Framing(Protocol):
    """Cuts a stream into the pieces that cues look at."""

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces that are whole now; the rest waits."""
        ...


class Raw:
    """Every chunk is a piece."""

    def feed(self, data: bytes) -> list[bytes]:
        """As it came."""
        return [data]


class Http2Frames:
    """HTTP/2's frames (RFC 9113 §4.1); the client's preface is a piece by itself."""

    _PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        self._buffer += data
        frames: list[bytes] = []
        while len(self._buffer) >= 9:
            if self._PREFACE.startswith(self._buffer[:9]):
                size = len(self._PREFACE)
            else:
                size = 9 + int.from_bytes(self._buffer[:3])
            if len(self._buffer) < size:
                break
            frames.append(self._buffer[:size])
            self._buffer = self._buffer[size:]
        return frames


def is_headers(frame: bytes) -> bool:
    """Whether a frame of HTTP/2 begins a request or its answer."""
    return len(frame) >= 9 and frame[3] == 1


def is_message(frame: bytes) -> bool:
    """Whether a frame of HTTP/2 carries (a part of) a message of gRPC."""
    return len(frame) > 9 and frame[3] == 0


def anything(_: bytes) -> bool:
    """Any piece."""
    return True


@dataclass(frozen=True, slots=True)
class Cue:
    """The place in a connection's bytes where a fault begins.

    request: which of the client's pieces it is about. reply: then, which of the server's; None: the request itself.
    passes: how many bytes still pass, counted from the beginning of that piece; None: as many as it has.
    """

    request: Predicate = anything
    reply: Predicate | None = None
    passes: int | None = 0


class Act(StrEnum):
    """What is done to a connection."""

    CUT = "cut"
    """Both ends see it end."""
    LOSE_CLIENT = "lose client"
    """The client sees it end; what it has sent reaches the server `seconds` later."""
    SWALLOW = "swallow"
    """Replies are thrown away. Both ends' kernels go on acknowledging."""
    SILENCE = "silence"
    """Half-open: nothing passes either way, and neither end is told."""
    DELAY = "delay"
    """Everything passes `seconds` later."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An act; with a cue it begins there, in so many connections (`times`, None: in all); else at once, everywhere.

    reset: a cut is a reset (RST) instead of an orderly end (FIN). then: the fault that follows, once `times` are over.
    """

    act: Act
    cue: Cue | None = None
    seconds: float = 0.0
    times: int | None = 1
    reset: bool = False
    then: Fault | None = None
