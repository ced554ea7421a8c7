"""One connection through a `TcpProxy`: what is under way in each direction, and how far a cue has come in it."""

from __future__ import annotations

import socket
from collections import deque

from lab.proxy.faults import Cue, Fault, Framing


class Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, framing: Framing) -> None:
        self.source = source
        self.sink = sink
        self.framing = framing
        self.waiting: deque[tuple[float, bytes]] = deque()  # when it may pass, what
        self.queued = 0
        self.ended = False  # the source has said all
        self.told = False  # and the sink knows

    def queue(self, piece: bytes, due: float) -> None:
        if piece:
            self.waiting.append((due, piece))
            self.queued += len(piece)

    def flush(self, now: float) -> None:
        """Sends what is due and what the sink takes. Raises OSError where that has gone."""
        while self.waiting and self.waiting[0][0] <= now:
            due, piece = self.waiting.popleft()
            try:
                sent = self.sink.send(piece)
            except BlockingIOError:
                sent = 0
            self.queued -= sent
            if sent < len(piece):
                self.waiting.appendleft((due, piece[sent:]))
                return
        if self.ended and not self.waiting and not self.told:
            self.told = True
            self.sink.shutdown(socket.SHUT_WR)


class Link:
    """One connection: the client's and the server's half, and how far a cue has come in it."""

    def __init__(self, client: socket.socket, server: socket.socket, up: Framing, down: Framing) -> None:
        self.client = client
        self.server = server
        self.up = Way(client, server, up)
        self.down = Way(server, client, down)
        self.struck: Fault | None = None  # what has hit this connection, for good
        self.closing = False
        self.client_lost = False
        self._order = 0
        self._requested = False
        self._left: int | None = None

    def passes(self, way: Way, piece: bytes, cue: Cue, order: int) -> int | None:
        """How many bytes of this piece pass before the fault begins; None: it doesn't begin in it.

        order: the number of the `set` that the cue came with; with another one it begins anew.
        """
        if self._order != order:
            self._order, self._requested, self._left = order, False, None
        counted = self.up if cue.reply is None else self.down
        if way is self.up and not self._requested and cue.request(piece):
            self._requested = True
            if cue.reply is None:
                self._left = len(piece) if cue.passes is None else cue.passes
        elif way is self.down and self._requested and self._left is None and cue.reply and cue.reply(piece):
            self._left = len(piece) if cue.passes is None else cue.passes
        if way is not counted or self._left is None:
            return None
        if self._left <= len(piece):
            return self._left
        self._left -= len(piece)
        return None
