"""The watchdog: a silent peer is given up in time, and nobody else is touched."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from tandem.runtime.watchdog import LOOK_EVERY_S, Watchdog


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_silent_peer_is_given_up() -> None:
    """A read that would last for ever ends with the end of the stream."""
    ours, theirs = socket.socketpair()
    watched = Watchdog()
    started = time.monotonic()
    own = watched.watch(ours.fileno(), 0.1)
    assert ours.recv(1) == b""
    assert time.monotonic() - started < 0.1 + 4 * LOOK_EVERY_S
    watched.release(own)
    ours.close()
    theirs.close()


def test_a_moment_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of that attempt, and the next one is watched."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours, theirs = socket.socketpair()
    watched = Watchdog()
    before = open_descriptors()
    with ours, theirs:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(threading.Thread, "start", none_left)
            with pytest.raises(RuntimeError):
                watched.watch(ours.fileno(), 0.1)
        assert open_descriptors() == before
        watched.watch(ours.fileno(), 0.1)
        ours.settimeout(20)
        assert ours.recv(1) == b""


def test_what_is_released_is_left_alone() -> None:
    """Also where its number has a new owner meanwhile, and no descriptor is kept."""
    watched = Watchdog()
    before = open_descriptors()
    for _ in range(50):
        ours, theirs = socket.socketpair()
        watched.release(watched.watch(ours.fileno(), 0.01))
        ours.close()
        theirs.close()
    assert open_descriptors() < before + 50  # others of this process come and go
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(3 * LOOK_EVERY_S)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_connection_that_was_closed_meanwhile() -> None:
    """Its number may have a new owner: that one is left alone."""
    watched = Watchdog()
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    watched.watch(number, 0.05)
    ours.close()
    stranger, peer = socket.socketpair()
    with theirs, stranger, peer:
        assert number in (stranger.fileno(), peer.fileno())
        stranger.settimeout(4 * LOOK_EVERY_S)
        assert theirs.recv(1) == b"", "the watched one is shut down"
        with pytest.raises(TimeoutError):
            stranger.recv(1)
