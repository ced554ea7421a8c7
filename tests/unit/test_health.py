"""What a process says of itself: to gRPC's health protocol, and on its HTTP port."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from tandem.runtime import healthcheck, page
from tandem.runtime.page import AT_ONCE, Page, app
from tandem.runtime.server import LIVE, Server
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc
from tests.support.rules import eventually

SERVICE = "tandem.v1.CoordinatorService"


class Busy(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.entered = threading.Semaphore(0)

    def ListTransactions(
        self, request: object, context: object
    ) -> coordinator_pb2.CoordinatorServiceListTransactionsResponse:
        self.entered.release()
        assert self.go_on.wait(30)
        return coordinator_pb2.CoordinatorServiceListTransactionsResponse()


@pytest.fixture
def busy() -> Iterator[Busy]:
    servicer = Busy()
    yield servicer
    servicer.go_on.set()


@pytest.fixture
def server(busy: Busy) -> Iterator[Server]:
    """Two workers and no queue."""
    server = Server("127.0.0.1:0", workers=2, queue=0)
    service = coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"]
    server.add(service, busy, coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server)
    server.start()
    yield server
    busy.go_on.set()
    server.drain(1)


def states(server: Server) -> list[str]:
    """Of the server, its service, and the process."""
    return [healthcheck.state(server.address, service=name) for name in ("", SERVICE, LIVE)]


def test_readiness_is_not_liveness(server: Server) -> None:
    """A database that is away makes no process look dead: a restart would mend nothing."""
    assert states(server) == ["SERVING"] * 3
    server.serving(False)
    assert (states(server), server.ready) == (["NOT_SERVING", "NOT_SERVING", "SERVING"], False)
    server.serving(True)
    assert (states(server), server.ready) == (["SERVING"] * 3, True)


def test_who_leaves_does_not_come_back(server: Server) -> None:
    """A database that answers makes a process that is about to stop serve no more."""
    server.leave()
    server.serving(True)
    assert (states(server), server.ready) == (["NOT_SERVING", "NOT_SERVING", "SERVING"], False)


def test_the_check_command_asks_for_either(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """--live goes by the process alone."""
    assert healthcheck.LIVE == LIVE
    server.serving(False)
    assert healthcheck.main([server.address]) == 1
    assert capsys.readouterr().err.endswith("NOT_SERVING\n")
    assert healthcheck.main(["--live", server.address]) == 0


def test_a_busy_server_still_says_how_it_is(server: Server, busy: Busy) -> None:
    """Health has a worker of its own: who turns calls away for a while must not be taken for dead."""
    request = coordinator_pb2.CoordinatorServiceListTransactionsRequest()
    with grpc.insecure_channel(server.address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        calls = [stub.ListTransactions.future(request, timeout=30) for _ in range(2)]
        for _ in calls:
            assert busy.entered.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListTransactions(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert states(server) == ["SERVING"] * 3
        busy.go_on.set()
        assert [call.result() is not None for call in calls] == [True, True]


def test_a_watcher_hears_of_each_change(server: Server) -> None:
    """As a client's load balancer does."""
    with grpc.insecure_channel(server.address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
        heard = [next(watching).status]
        server.serving(False)
        heard.append(next(watching).status)
        server.serving(True)
        heard.append(next(watching).status)
        watching.cancel()
    state = health_pb2.HealthCheckResponse
    assert heard == [state.SERVING, state.NOT_SERVING, state.SERVING]


# --- the HTTP port --------------------------------------------------------------------------------------------------


class Ready:
    """Whether it is, and a gate to wait at."""

    def __init__(self) -> None:
        self.is_ready = True
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)

    def __call__(self) -> bool:
        self.waiting.release()
        assert self.gate.wait(30)
        return self.is_ready


@pytest.fixture
def ready() -> Ready:
    return Ready()


@pytest.fixture
def served(ready: Ready) -> Iterator[Page]:
    registry = CollectorRegistry()
    Counter("tandem_things", "Things.", registry=registry).inc()
    made = Page("127.0.0.1", 0, app(registry, ready))
    yield made
    ready.gate.set()
    made.close()


def get(where: Page, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", where.server_port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_page(served: Page, ready: Ready) -> None:
    """Each path, ready and not; nothing else is there, and nothing can be sent."""
    assert get(served, "/livez") == (200, "live\n")
    assert get(served, "/readyz") == (200, "ready\n")
    assert "tandem_things_total 1.0" in get(served, "/metrics")[1]
    ready.is_ready = False
    assert get(served, "/readyz") == (503, "not ready\n")
    assert get(served, "/readyz", "HEAD") == (503, "")
    assert get(served, "/livez") == (200, "live\n")
    assert get(served, "/nothing")[0] == get(served, "/")[0] == 404
    assert {get(served, path, "POST")[0] for path in ("/livez", "/readyz", "/metrics")} == {405}


def test_a_client_that_says_nothing_is_hung_up_on(served: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for it meanwhile."""
    monkeypatch.setattr(page._Handler, "timeout", 0.5)
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=20) as silent:
        assert get(served, "/livez")[0] == 200
        assert silent.recv(1) == b""


def test_a_client_that_dawdles_is_hung_up_on(served: Page, ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has a limit as a whole, however often a byte of it comes."""
    monkeypatch.setattr(page, "REQUEST_S", 0.5)
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=0.2) as slow:
        for _ in range(100):
            try:
                slow.sendall(b"G")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it was let go on for ever")
    assert get(served, "/livez")[0] == 200


def test_a_moment_without_descriptors_costs_no_turn(served: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes then is hung up on; once there are some again, everybody is answered as before."""

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "none left")

    with monkeypatch.context() as exhausted:
        exhausted.setattr(page.watchdog, "watch", none_left)
        for _ in range(AT_ONCE):
            with socket.create_connection(("127.0.0.1", served.server_port), timeout=20) as refused:
                assert refused.recv(1) == b""
    eventually(lambda: served._turns._value == AT_ONCE)
    assert get(served, "/livez") == (200, "live\n")


def test_only_so_many_at_once(served: Page, ready: Ready) -> None:
    """A further one is hung up on; the others are answered, and then there is room again."""
    ready.gate.clear()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        asked = [clients.submit(get, served, "/readyz") for _ in range(AT_ONCE)]
        for _ in asked:
            assert ready.waiting.acquire(timeout=20)
        with pytest.raises((http.client.HTTPException, OSError)):
            get(served, "/livez")
        ready.gate.set()
        assert {answer.result() for answer in asked} == {(200, "ready\n")}
    for _ in range(100):  # a turn is given back after the answer
        try:
            assert get(served, "/livez") == (200, "live\n")
            break
        except (http.client.HTTPException, OSError):
            continue
    else:
        pytest.fail("no turn came free")
