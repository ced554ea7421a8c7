"""The fault proxy itself: unharmed where there is no fault, to the byte where there is one, bounded, and gone after."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from lab.proxy import (
    MAX_QUEUED_BYTES,
    Act,
    CallFault,
    Cue,
    Fault,
    Http2Frames,
    Reply,
    RpcRelay,
    TcpProxy,
    is_message,
)
from lab.wire_pg import COMMIT, COMMIT_REPLY, ClientMessages, is_query, query
from tests.support.rules import eventually, seeded

QUIET_S = 0.15
"""How long nothing must come, where nothing may."""


class Peer:
    """A server that keeps what it is sent, by connection, and answers each chunk with `answer(chunk)`."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.received: list[bytearray] = []
        self.ended: list[bool] = []
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number = len(self.received)
            self.received.append(bytearray())
            self.ended.append(False)
            thread = threading.Thread(target=self._serve, args=(connection, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    self.received[number] += data
                    connection.sendall(self._answer(data))
            except OSError:
                pass
            self.ended[number] = True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """An echo."""
    made = Peer()
    yield made
    made.close()


@pytest.fixture
def proxy(peer: Peer) -> Iterator[TcpProxy]:
    """A proxy before it; closed before the peer is."""
    with TcpProxy(peer.address) as made:
        yield made


@contextmanager
def dialled(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        yield client


def exactly(client: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if the connection ends before."""
    got = b""
    while len(got) < count and (data := client.recv(count - len(got))):
        got += data
    return got


def is_quiet(client: socket.socket) -> bool:
    """Whether nothing comes, and not the end either."""
    client.settimeout(QUIET_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_nothing_is_harmed_without_a_fault(proxy: TcpProxy) -> None:
    """Several connections, megabytes in pieces of any size, and the end of one direction before the other."""
    random = seeded()
    content = random.randbytes(3_000_000)
    cuts = sorted(random.randrange(len(content)) for _ in range(200))

    def talk() -> bytes:
        with dialled(proxy) as client:
            got: list[bytes] = []
            reader = threading.Thread(target=lambda: got.append(exactly(client, len(content) + 1)))
            reader.start()
            for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
                client.sendall(content[start:end])
            client.shutdown(socket.SHUT_WR)
            reader.join(30)
            return got[0]

    with futures.ThreadPoolExecutor(4) as pool:
        for echoed in [pool.submit(talk) for _ in range(4)]:
            assert echoed.result() == content
    eventually(lambda: proxy.links == 0)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("passes", [0, 1, 5, 9, None])
def test_cut_in_a_request(proxy: TcpProxy, peer: Peer, passes: int | None, reset: bool) -> None:
    """The server gets exactly so many bytes, the client none; both see the end; the next connection is well."""
    proxy.set(Fault(Act.CUT, Cue(lambda piece: piece.startswith(b"fatal"), passes=passes), reset=reset))
    with dialled(proxy) as client:
        client.sendall(b"harmless")
        assert exactly(client, 8) == b"harmless"
        client.sendall(b"fatal word")
        assert proxy.wait_struck(timeout_s=5)
        try:
            rest = exactly(client, 20)
        except ConnectionResetError:
            rest = b""
        assert len(rest) <= (10 if passes is None else passes), "an echo may have been on its way"
    eventually(lambda: peer.ended[0])
    if not reset:
        assert peer.received[0] == b"harmless" + b"fatal word"[:passes]
    with dialled(proxy) as client:
        client.sendall(b"fatal word")
        assert exactly(client, 10) == b"fatal word", "once is once"


@pytest.mark.parametrize("passes", range(11))
def test_cut_in_a_reply(proxy: TcpProxy, peer: Peer, passes: int) -> None:
    """The server has got it all, the client exactly so much of the answer."""
    proxy.set(Fault(Act.CUT, Cue(lambda piece: piece == b"fatal word", lambda _: True, passes)))
    with dialled(proxy) as client:
        client.sendall(b"fatal word")
        assert exactly(client, 20) == b"fatal word"[:passes]
    assert proxy.struck == 1
    assert peer.received[0] == b"fatal word"


def test_swallowed_replies(proxy: TcpProxy, peer: Peer) -> None:
    """Requests arrive, replies don't, nobody sees an end; healing gives nothing back, new connections are well."""
    with dialled(proxy) as client:
        proxy.set(Fault(Act.SWALLOW))
        client.sendall(b"one")
        eventually(lambda: peer.received and peer.received[0] == b"one")
        assert is_quiet(client)
        proxy.heal()
        client.sendall(b"two")
        assert is_quiet(client), "a stream that has lost bytes can't go on"
        eventually(lambda: proxy.done == {Act.SWALLOW: 6})
        with dialled(proxy) as other:
            other.sendall(b"three")
            assert exactly(other, 5) == b"three"


def test_half_open(proxy: TcpProxy, peer: Peer) -> None:
    """Nothing passes either way, the client's kernel is content, and the server is not told when the client goes."""
    with dialled(proxy) as client:
        client.sendall(b"one")
        assert exactly(client, 3) == b"one"
        proxy.set(Fault(Act.SILENCE))
        client.sendall(b"two")
        assert is_quiet(client)
    assert peer.received[0] == b"one"
    assert not peer.ended[0]
    with dialled(proxy) as client:
        client.sendall(b"three")
        assert is_quiet(client), "new ones are silent, too"
    assert proxy.done == {Act.SILENCE: 8}
    proxy.cut()
    eventually(lambda: peer.ended[0])


def test_delay(proxy: TcpProxy) -> None:
    """Each direction takes so much longer; order and content are kept; healed, it is quick again at once."""
    proxy.set(Fault(Act.DELAY, seconds=0.1))
    with dialled(proxy) as client:
        started = time.monotonic()
        client.sendall(b"one")
        assert exactly(client, 3) == b"one"
        assert time.monotonic() - started >= 0.2
        proxy.heal()
        assert proxy.done == {Act.DELAY: 6}, "both directions' bytes"
        started = time.monotonic()
        client.sendall(b"two")
        assert exactly(client, 3) == b"two"
        assert time.monotonic() - started < 0.1


def test_a_request_that_outlives_its_client(proxy: TcpProxy, peer: Peer) -> None:
    """The client sees the end at once; what it has sent arrives later, then the end."""
    proxy.set(Fault(Act.LOSE_CLIENT, Cue(passes=2), seconds=0.2))
    with dialled(proxy) as client:
        started = time.monotonic()
        client.sendall(b"late")
        assert client.recv(1) == b""
        assert time.monotonic() - started < 0.2
        eventually(lambda: peer.received and peer.received[0] == b"late")
        assert time.monotonic() - started >= 0.2
    eventually(lambda: peer.ended[0])
    eventually(lambda: proxy.links == 0)


def test_so_many_times_and_then(proxy: TcpProxy) -> None:
    """`times` connections are hit; `then` comes after them."""
    proxy.set(Fault(Act.CUT, Cue(), times=2, then=Fault(Act.SILENCE)))
    for _ in range(2):
        with dialled(proxy) as client:
            client.sendall(b"x")
            assert client.recv(1) == b""
    with dialled(proxy) as client:
        client.sendall(b"x")
        assert is_quiet(client)
    assert proxy.struck == 2
    assert proxy.done == {Act.CUT: 2, Act.SILENCE: 1}


def test_cut_for_good(proxy: TcpProxy) -> None:
    """What is there ends, what is new is not let in, until it is healed; each is counted."""
    with dialled(proxy) as client:
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"
        proxy.set(Fault(Act.CUT))
        assert client.recv(1) == b""
    for _ in range(2):
        with dialled(proxy) as client:
            assert client.recv(1) == b""
    assert proxy.done == {Act.CUT: 3}
    proxy.heal()
    with dialled(proxy) as client:
        client.sendall(b"x")
        assert exactly(client, 1) == b"x"


def test_a_slow_reader_holds_its_sender_up(peer: Peer, proxy: TcpProxy) -> None:
    """The proxy keeps no more than its limit, and loses nothing."""
    proxy.set(Fault(Act.DELAY, seconds=0.5))
    with dialled(proxy) as client:
        client.settimeout(0.2)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000_000:
                sent += client.send(b"x" * 65_536)
        assert proxy.queued <= MAX_QUEUED_BYTES + 65_536
        client.settimeout(20)
        proxy.heal()
        assert len(exactly(client, sent)) == sent


def test_too_many_connections(peer: Peer) -> None:
    """One more than the limit is closed at once; the others go on."""
    with TcpProxy(peer.address, max_links=2) as proxy, dialled(proxy) as one, dialled(proxy) as two:
        one.sendall(b"1")
        two.sendall(b"2")
        assert (exactly(one, 1), exactly(two, 1)) == (b"1", b"2")
        with dialled(proxy) as three:
            assert three.recv(1) == b""
        one.sendall(b"1")
        assert exactly(one, 1) == b"1"


def test_nobody_behind_it() -> None:
    """A target that refuses: the client sees the end, the proxy goes on."""
    with TcpProxy("127.0.0.1:1") as proxy:
        for _ in range(2):
            with dialled(proxy) as client:
                assert client.recv(1) == b""


def test_it_is_gone_after_close(peer: Peer) -> None:
    """Open, silent and delayed connections end; no thread and no descriptor is left."""
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    proxy = TcpProxy(peer.address)
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    proxy.set(Fault(Act.DELAY, seconds=60))
    client.sendall(b"x")
    proxy.close()
    proxy.close()
    assert client.recv(1) == b""
    client.close()
    with pytest.raises(RuntimeError):
        proxy.heal()
    eventually(lambda: (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before)


# --- framings ---------------------------------------------------------------------------------------------------------


def test_postgresql_messages_in_any_pieces() -> None:
    """Whatever the chunks, the messages are whole; the untyped ones at the beginning, too."""
    ssl_request = b"\0\0\0\x08\x04\xd2\x16\x2f"
    startup = b"\0\0\0\x13\0\3\0\0user\0me\0\0\0\0"
    messages = [ssl_request, startup, query("SELECT 1"), query("INSERT INTO own VALUES (1)"), COMMIT]
    stream = b"".join(messages)
    random = seeded()
    for _ in range(200):
        framing, got, rest = ClientMessages(), [], stream
        while rest:
            size = random.randint(1, 20)
            got += framing.feed(rest[:size])
            rest = rest[size:]
        assert got == messages
    assert [is_query("COMMIT")(message) for message in messages] == [False] * 4 + [True]
    assert (len(COMMIT), len(COMMIT_REPLY)) == (12, 18)


def test_http2_frames_in_any_pieces() -> None:
    """The preface, then frames; a message is told from everything else."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings, headers = b"\0\0\0\4\0\0\0\0\0", b"\0\0\2\1\4\0\0\0\1hh"
    message, empty = b"\0\0\5\0\1\0\0\0\1\0\0\0\0\0", b"\0\0\0\0\1\0\0\0\1"
    frames = [preface, settings, headers, message, empty]
    random = seeded()
    for _ in range(200):
        framing, got, rest = Http2Frames(), [], b"".join(frames)
        while rest:
            size = random.randint(1, 20)
            got += framing.feed(rest[:size])
            rest = rest[size:]
        assert got == frames
    assert [is_message(frame) for frame in frames] == [False, False, False, True, False]


# --- calls ------------------------------------------------------------------------------------------------------------


class Counting(grpc.GenericRpcHandler):
    """Answers a request with itself; "refuse" is refused with details."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.requests.append(request)
            if request == b"refuse":
                context.set_trailing_metadata((("about-bin", b"\0\1"),))
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no")
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def counting() -> Iterator[tuple[Counting, RpcRelay, Callable[..., bytes]]]:
    """A server, a relay before it, and a call through it."""
    handler = Counting()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with RpcRelay(f"127.0.0.1:{port}") as relay, grpc.insecure_channel(relay.address) as channel:

        def call(request: bytes = b"x", method: str = "Work", timeout_s: float = 5.0) -> bytes:
            answered: bytes = channel.unary_unary(f"/a.Service/{method}")(request, timeout=timeout_s)  # type: ignore[arg-type]
            return answered

        yield handler, relay, call
    server.stop(0)


Counted = tuple[Counting, RpcRelay, Callable[..., bytes]]


def test_calls_pass_unharmed(counting: Counted) -> None:
    """Answers, and refusals with their code, sentence and details; each request is sent once."""
    handler, relay, call = counting
    assert call(b"one") == b"one"
    with pytest.raises(grpc.RpcError) as raised:
        call(b"refuse")
    error = raised.value
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no")
    trailing: list[Any] = list(error.trailing_metadata())
    assert ("about-bin", b"\0\1") in [tuple(pair) for pair in trailing]
    assert handler.requests == [b"one", b"refuse"]
    assert relay.calls("Work") == 2


def test_a_request_is_repeated(counting: Counted) -> None:
    """At once, so many times; later, as often as one likes; and only the method that is meant."""
    handler, relay, call = counting
    relay.set(CallFault("Work", copies=3))
    assert call(b"other", "Rest") == b"other"
    assert call(b"one") == b"one"
    assert handler.requests == [b"other"] + [b"one"] * 4
    assert call(b"two") == b"two"
    assert handler.requests.count(b"two") == 1, "once is once"
    assert relay.copies == 3
    assert relay.again("Work", 2) == [b"two", b"two"]
    assert handler.requests.count(b"two") == 3


@pytest.mark.parametrize(
    ("reply", "code"),
    [(Reply.LOST, grpc.StatusCode.UNAVAILABLE), (Reply.SWALLOWED, grpc.StatusCode.DEADLINE_EXCEEDED)],
)
def test_a_reply_is_lost(counting: Counted, reply: Reply, code: grpc.StatusCode) -> None:
    """The server has done the work; the caller is told that it broke, or nothing."""
    handler, relay, call = counting
    relay.set(CallFault(reply=reply, times=None))
    for count in (1, 2):
        with pytest.raises(grpc.RpcError) as raised:
            call(timeout_s=0.3)
        assert raised.value.code() is code
        assert len(handler.requests) == count
        eventually(lambda count=count: relay.lost == count)
    relay.heal()
    assert call(b"well") == b"well"


def test_a_call_is_delayed(counting: Counted) -> None:
    """A request arrives although its sender has given up."""
    handler, relay, call = counting
    relay.set(CallFault(delay_s=0.4))
    with pytest.raises(grpc.RpcError) as raised:
        call(timeout_s=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert handler.requests == []
    eventually(lambda: handler.requests == [b"x"])
