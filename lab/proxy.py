"""The fault proxy: stands between any two processes and breaks the wire between them, when and where it is told to.

`TcpProxy` knows bytes: it delays, cuts, swallows replies and half-opens, PostgreSQL's connections included.
`RpcRelay` knows calls: it repeats requests and loses replies of work that was done, which HTTP/2's bytes don't allow.
Both live in the test's own process, hold no more than their limits, and are gone after `close()`.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

MAX_LINKS = 64
"""Connections that one proxy carries; a further one is closed at once."""

MAX_QUEUED_BYTES = 1024 * 1024
"""In each direction of a connection; the sender waits then, as on a slow network."""

CONNECT_S = 5.0
CLOSE_S = 10.0
CHUNK_BYTES = 65_536

Predicate = Callable[[bytes], bool]


# --- where and what -------------------------------------------------------------------------------------------------


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


# --- bytes ----------------------------------------------------------------------------------------------------------


class _Way:
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


class _Link:
    """One connection: the client's and the server's half, and how far a cue has come in it."""

    def __init__(self, client: socket.socket, server: socket.socket, up: Framing, down: Framing) -> None:
        self.client = client
        self.server = server
        self.up = _Way(client, server, up)
        self.down = _Way(server, client, down)
        self.struck: Fault | None = None  # what has hit this connection, for good
        self.closing = False
        self.client_lost = False
        self._order = 0
        self._requested = False
        self._left: int | None = None

    def passes(self, way: _Way, piece: bytes, cue: Cue, order: int) -> int | None:
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


T = TypeVar("T")


class TcpProxy:
    """Carries connections to `target`, and does to them what the present fault says. One thread.

    target: "host:port", or a unix socket's path. requests, replies: the framings that cues look through.
    `struck` counts the connections that a fault with a cue has hit. `tap` is shown all that arrives: whether it is the
    client's, and the piece. A context manager.
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
        self._links: set[_Link] = set()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._struck = threading.Condition()
        self.struck = 0
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
            self._end([link for link in self._links if not link.closing], reset=fault.reset)

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
        if len(self._links) >= self._max_links or (self._acting(None) is Act.CUT):
            client.close()
            return
        try:
            server = _connected(self.target)
        except OSError:
            client.close()
            return
        requests, replies = self._framings
        link = _Link(client, server, requests(), replies())
        for half in (client, server):
            half.setblocking(False)
            if half.family != socket.AF_UNIX:
                half.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(half, selectors.EVENT_READ, link)
        self._links.add(link)

    def _acting(self, link: _Link | None) -> Act | None:
        """What is being done to this connection, or to a new one."""
        if link is not None and link.struck is not None:
            return link.struck.act
        return self._fault.act if self._fault is not None and self._fault.cue is None else None

    def _read(self, link: _Link, way: _Way) -> None:
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

    def _take(self, link: _Link, way: _Way, piece: bytes) -> None:
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
        if acting is None:
            way.queue(piece, now)
        elif acting is Act.DELAY or (acting is Act.LOSE_CLIENT and way is link.up):
            way.queue(piece, now + seconds)
        elif acting is Act.SWALLOW and way is link.up:
            way.queue(piece, now)
        elif link.struck is None and piece:
            link.struck = fault  # it has lost bytes: nothing can heal it

    def _strike(self, link: _Link, fault: Fault) -> None:
        link.struck = fault
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

    def _move(self, link: _Link) -> None:
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

    def _watch(self, half: socket.socket, events: int, link: _Link) -> None:
        known = self._selector.get_map().get(half)
        if known is None:
            if events:
                self._selector.register(half, events, link)
        elif not events:
            self._selector.unregister(half)
        elif known.events != events:
            self._selector.modify(half, events, link)

    def _end(self, links: tuple[_Link, ...] | list[_Link], *, reset: bool = False) -> None:
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


# --- calls ----------------------------------------------------------------------------------------------------------


class Reply(StrEnum):
    """What becomes of a call's answer, after the server has done the work."""

    PASSES = "passes"
    LOST = "lost"
    """The caller is told UNAVAILABLE, as when the connection breaks."""
    SWALLOWED = "swallowed"
    """The caller is told nothing, until it gives up."""


@dataclass(frozen=True, slots=True)
class CallFault:
    """What is done to calls of one method (its last name, as "BatchCommit"; empty: any), `times` times (None: all).

    copies: the request is sent so many times more, all at once. delay_s: before it is sent.
    """

    method: str = ""
    delay_s: float = 0.0
    copies: int = 0
    reply: Reply = Reply.PASSES
    times: int | None = 1


MAX_SEEN = 1_000
WORKERS = 16

LATE_S = 30.0
"""The deadline of a call that a fault has got hold of, whatever its sender's was."""


class RpcRelay(grpc.GenericRpcHandler):
    """Forwards unary calls to `target` as bytes, each once, and does to them what the present fault says.

    `seen` holds the last calls (method, request): `again` sends one a second time, however late. A context manager.
    """

    def __init__(self, target: str) -> None:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0), *limits])
        self._fault: CallFault | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.seen: deque[tuple[str, bytes]] = deque(maxlen=MAX_SEEN)
        self._pool = futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="relay")
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0), *limits])
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def __enter__(self) -> RpcRelay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def set(self, fault: CallFault) -> None:
        """From now on, in place of the fault before."""
        with self._lock:
            self._fault = fault

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._fault = None

    def calls(self, method: str) -> int:
        """How many of a method have come by."""
        return sum(seen.endswith(f"/{method}") for seen, _ in tuple(self.seen))

    def again(self, method: str, times: int = 1, *, timeout_s: float = 10.0) -> list[bytes | grpc.StatusCode]:
        """Sends the method's (or any method's) last request again, so many times at once: what each answered."""
        name, request = next(
            (n, r) for n, r in reversed(tuple(self.seen)) if n.endswith(f"/{method}" if method else "")
        )
        calls = [self._send(name, request, timeout_s) for _ in range(times)]
        return [_answered(call) for call in calls]

    def close(self) -> None:
        """Ends what is held back, and the threads. Idempotent."""
        self._closing.set()
        self._server.stop(0).wait(CLOSE_S)
        self._pool.shutdown(wait=True)
        self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Any method."""
        name = str(handler_call_details.method)

        def relay(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._relay(name, request, context)

        return grpc.unary_unary_rpc_method_handler(relay)

    def _relay(self, name: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen.append((name, request))
        fault = self._take(name)
        self._closing.wait(fault.delay_s)
        # What is under way is not called back when its sender gives up: a faulty call keeps its own time.
        timeout_s = context.time_remaining() if fault is _WELL else LATE_S
        calls = [self._send(name, request, timeout_s) for _ in range(1 + fault.copies)]
        answer, *_ = [_answered(call) for call in calls]
        if fault.reply is Reply.SWALLOWED:
            while context.is_active() and not self._closing.wait(0.02):
                pass
        if fault.reply is not Reply.PASSES:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        if not isinstance(answer, bytes):
            context.set_trailing_metadata(tuple(calls[0].trailing_metadata() or ()))
            context.abort(answer, calls[0].details() or "")
            raise AssertionError("abort() raises")
        return answer

    def _take(self, name: str) -> CallFault:
        with self._lock:
            fault = self._fault
            if fault is None or (fault.method and not name.endswith(f"/{fault.method}")):
                return _WELL
            if fault.times is not None:
                self._fault = replace(fault, times=fault.times - 1) if fault.times > 1 else None
            return fault

    def _send(self, name: str, request: bytes, timeout_s: float | None) -> Any:
        call: Any = self._channel.unary_unary(name)  # without serializers: bytes in, bytes out
        return call.future(request, timeout=timeout_s)


_WELL = CallFault()


def _answered(call: Any) -> bytes | grpc.StatusCode:
    try:
        answer: bytes = call.result()
    except grpc.RpcError:
        code: grpc.StatusCode = call.code()
        return code
    return answer
