"""Ends waits that nothing else ends: a read from a server that is silent, though its kernel still answers (R16).

PostgreSQL's own timeouts are kept by the server, and TCP's by its kernel. A server that is stopped, or a network that
lets packets through and forgets the connection, leaves libpq reading for ever. The watchdog shuts such a socket down:
libpq then says that the connection is lost, and what was asked on it is as uncertain as after any lost connection (R3).
"""

from __future__ import annotations

import os
import socket
import threading
import time

LOOK_EVERY_S = 0.25


class Watchdog:
    """Shuts sockets down that were not let go in time. One thread for all of them; it starts with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, float] = {}  # own descriptor of the socket → when it is too late
        self._pid = 0

    def watch(self, descriptor: int, seconds: float) -> int:
        """Watches a socket for so long; returns what `release` wants. Raises OSError, RuntimeError where nobody can."""
        own = os.dup(descriptor)  # whatever becomes of the connection, no other socket can get this number
        with self._lock:
            if self._pid != os.getpid():  # the first time, or in a process that was forked off
                try:
                    threading.Thread(target=self._run, name="watchdog", daemon=True).start()
                except RuntimeError:  # no thread to be had: the next one tries again
                    os.close(own)
                    raise
                self._pid = os.getpid()
            self._watched[own] = time.monotonic() + seconds
        return own

    def release(self, own: int) -> bool:
        """The wait is over. False: it was too late, and the socket has been shut down."""
        with self._lock:
            if self._watched.pop(own, None) is None:
                return False
        os.close(own)
        return True

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                late = [own for own, until in self._watched.items() if until < now]
                for own in late:
                    del self._watched[own]
            for own in late:
                _shut(own)


def _shut(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as connection:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has gone by itself


watchdog = Watchdog()
"""The process's own."""
