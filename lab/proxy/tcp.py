"""`TcpProxy` knows bytes: it delays, cuts, swallows replies and half-opens, PostgreSQL's connections included."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from lab.proxy.faults import Act, Fault, Framing, Raw
from lab.proxy.link import Link, Way

MAX_LINKS = 64
"""Connections that one proxy carries; a further one is closed at once."""

MAX_QUEUED_BYTES = 1024 * 1024
"""In each direction of a connection; the sender waits then, as on a slow network."""

CONNECT_S = 5.0
CLOSE_S = 10.0
CHUNK_BYTES = 65_536

T = TypeVar("T")


class TcpProxy:
    """Carries connections to `target`, and does to them what the present fault says. One thread.

    target: "host:port", or a unix socket's path. requests, replies: the framings that cues look through.
    `struck` counts the connections that a fault with a cue has hit. `done` counts what each act was done to, with a cue
    or without: connections that were cut, lost their client or were not let in; bytes that were delayed, swallowed or
    held back for good. `tap` is shown all that arrives: whether it is the client's, and the piece. A context manager.
    """

    def __init__(
        self,
        target: str,
        *,
        requests: Callable[[], Framing] = Raw,
        replies: Callable[[], Framing] = Raw,
        max_links: int = MAX_LINKS,
    ) -> None:
        self.target = target
        self._framings = (requests, replies)
        self._max_links = max_links
        self._fault: Fault | None = None
        self._order = 0
        self._links: set[Link] = set()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._struck = threading.Condition()
        self.struck = 0
        self.done: Counter[Act] = Counter()
        self.tap: Callable[[bool, bytes], object] = lambda upward, piece: None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_LINKS)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._wake_up, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._running = True
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<TcpProxy :{self.port} → {self.target}, {len(self._links)} connections, {self._fault}>"

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def links(self) -> int:
        """Connections that are open."""
        return self._do(lambda: len(self._links))

    @property
    def queued(self) -> int:
        """Bytes of clients that are held back."""
        return self._do(lambda: sum(link.up.queued for link in self._links))

    def set(self, fault: Fault) -> None:
        """From now on, in place of the fault before. In force when this returns."""
        self._do(lambda: self._use(fault))

    def heal(self) -> None:
        """No more faults. A connection that has lost bytes stays as it is; new ones are well."""
        self._do(lambda: self._use(None))

    def cut(self) -> None:
        """Cuts every connection there is, once."""
        self._do(lambda: self._end(tuple(self._links)))

    def wait_struck(self, count: int = 1, *, timeout_s: float) -> bool:
        """Whether a fault with a cue has hit so many connections, within the time."""
        with self._struck:
            return self._struck.wait_for(lambda: self.struck >= count, timeout_s)

    def close(self) -> None:
        """Ends every connection and the thread. Idempotent."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):
            self._do(self._stop)
        self._thread.join(CLOSE_S)
        assert not self._thread.is_alive(), f"{self!r} does not end"

    # --- its thread ---------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], T]) -> T:
        """Does it in the proxy's thread, and waits for that."""
        done: futures.Future[T] = futures.Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        if not self._thread.is_alive():
            raise RuntimeError(f"{self!r} is closed")
        self._commands.put(run)
        self._wake_up.send(b".")
        return done.result(CLOSE_S)

    def _stop(self) -> None:
        self._running = False

    def _use(self, fault: Fault | None) -> None:
        self._fault = fault
        self._order += 1
        if fault is not None and fault.cue is None and fault.act is Act.CUT:
            # A connection that ends already first gets what may still pass.
            ended = [link for link in self._links if not link.closing]
            self.done.update([Act.CUT] * len(ended))
            self._end(ended, reset=fault.reset)

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            while self._running:
                for key, events in self._selector.select(self._next_due()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._woken:
                        self._obey()
                    elif key.data in self._links and events & selectors.EVENT_READ:
                        self._read(key.data, key.data.up if key.fileobj is key.data.client else key.data.down)
                for link in tuple(self._links):
                    if link in self._links:
                        self._move(link)
        finally:
            self._end(tuple(self._links))
            for own in (self._listener, self._woken, self._wake_up):
                own.close()
            self._selector.close()
            while not self._commands.empty():
                self._commands.get()()

    def _next_due(self) -> float | None:
        """Seconds until something that is delayed may pass."""
        dues = [way.waiting[0][0] for link in self._links for way in (link.up, link.down) if way.waiting]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(CHUNK_BYTES)
        while not self._commands.empty():
            self._commands.get()()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if self._acting(None) is Act.CUT:
            self.done[Act.CUT] += 1
            client.close()
            return
        if len(self._links) >= self._max_links:
            client.close()
            return
        try:
            server = _connected(self.target)
        except OSError:
            client.close()
            return
        requests, replies = self._framings
        link = Link(client, server, requests(), replies())
        for half in (client, server):
            half.setblocking(False)
            if half.family != socket.AF_UNIX:
                half.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(half, selectors.EVENT_READ, link)
        self._links.add(link)

    def _acting(self, link: Link | None) -> Act | None:
        """What is being done to this connection, or to a new one."""
        if link is not None and link.struck is not None:
            return link.struck.act
        return self._fault.act if self._fault is not None and self._fault.cue is None else None

    def _read(self, link: Link, way: Way) -> None:
        if link.closing or way.ended or (link.client_lost and way is link.up):
            return
        try:
            data = way.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            way.ended = True
            acting = self._acting(link)
            if acting is Act.SILENCE or (acting is Act.SWALLOW and way is link.down):
                way.told = True  # the other end is not told
            return
        for piece in way.framing.feed(data):
            self.tap(way is link.up, piece)
            self._take(link, way, piece)

    def _take(self, link: Link, way: Way, piece: bytes) -> None:
        """Passes a piece on, or does to it what is to be done."""
        now = time.monotonic()
        fault = self._fault
        if link.struck is None and fault is not None and fault.cue is not None:
            passes = link.passes(way, piece, fault.cue, self._order)
            if passes is not None:
                way.queue(piece[:passes], now)
                self._strike(link, fault)
                piece = piece[passes:]
        acting, seconds = self._acting(link), (link.struck or fault or _NONE).seconds
        if acting in (Act.DELAY, Act.SILENCE) or (acting is Act.SWALLOW and way is link.down):
            self.done[acting] += len(piece)
        if acting is None:
            way.queue(piece, now)
        elif acting is Act.DELAY or (acting is Act.LOSE_CLIENT and way is link.up):
            way.queue(piece, now + seconds)
        elif acting is Act.SWALLOW and way is link.up:
            way.queue(piece, now)
        elif link.struck is None and piece:
            link.struck = fault  # it has lost bytes: nothing can heal it

    def _strike(self, link: Link, fault: Fault) -> None:
        link.struck = fault
        if fault.act in (Act.CUT, Act.LOSE_CLIENT):
            self.done[fault.act] += 1
        if fault.act is Act.CUT:
            link.closing = True
        if fault.act is Act.LOSE_CLIENT:
            link.client_lost = link.up.ended = link.down.told = True
            link.down.waiting.clear()
        if fault.times is not None:
            if fault.times > 1:
                self._fault = replace(fault, times=fault.times - 1)
            else:
                self._use(fault.then)
        with self._struck:
            self.struck += 1
            self._struck.notify_all()

    def _move(self, link: Link) -> None:
        """Sends what may be sent; ends what is over."""
        now = time.monotonic()
        try:
            link.up.flush(now)
            link.down.flush(now)
        except OSError:
            self._end([link])
            return
        idle = not link.up.waiting and not link.down.waiting
        if idle and (link.closing or (link.up.told and link.down.told and link.up.ended and link.down.ended)):
            self._end([link], reset=link.struck is not None and link.struck.reset)
            return
        if link.client_lost and link.client.fileno() != -1:
            self._selector.unregister(link.client)
            link.client.close()
        for half, out, into in ((link.client, link.down, link.up), (link.server, link.up, link.down)):
            if half.fileno() == -1:
                continue
            events = 0
            if not into.ended and into.queued < MAX_QUEUED_BYTES:
                events |= selectors.EVENT_READ
            if out.waiting and out.waiting[0][0] <= now:
                events |= selectors.EVENT_WRITE
            self._watch(half, events, link)

    def _watch(self, half: socket.socket, events: int, link: Link) -> None:
        known = self._selector.get_map().get(half)
        if known is None:
            if events:
                self._selector.register(half, events, link)
        elif not events:
            self._selector.unregister(half)
        elif known.events != events:
            self._selector.modify(half, events, link)

    def _end(self, links: tuple[Link, ...] | list[Link], *, reset: bool = False) -> None:
        for link in links:
            self._links.discard(link)
            for half in (link.client, link.server):
                if half.fileno() == -1:
                    continue
                with contextlib.suppress(KeyError):
                    self._selector.unregister(half)
                with contextlib.suppress(OSError):
                    if reset and half.family != socket.AF_UNIX:
                        half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        half.shutdown(socket.SHUT_RDWR)  # close() alone would answer unread bytes with a reset
                half.close()


_NONE = Fault(Act.DELAY)


def _connected(target: str) -> socket.socket:
    if target.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.settimeout(CONNECT_S)
        server.connect(target)
        return server
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=CONNECT_S)
