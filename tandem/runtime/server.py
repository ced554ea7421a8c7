"""The gRPC server every process stands on: health, reflection, limits, deadlines, errors, drain.

Servicers raise TandemError; everything else that escapes a handler becomes INTERNAL with a correlation id.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry, Gauge

from tandem.runtime.channel import MAX_MESSAGE_BYTES
from tandem.runtime.database import explained
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.rpc_metrics import ServerCalls
from tandem.runtime.status import code_of, to_status
from tandem.runtime.telemetry import frames, logger
from tandem.runtime.tracing import served
from tandem.runtime.validation import validate

log = logger("tandem.server")

DEFAULT_DEADLINE_S = 30.0
"""For a call that came without a deadline."""

REFUSED_BYTES = 24 * 1024 * 1024
"""A message above MAX_MESSAGE_BYTES is refused by us, with the reason; above this gRPC itself breaks the call off."""

TAKE_UP_S = 0.25
"""How long a server that is to stop still takes up calls."""

LIVE = "live"
"""Health's name for the process as such: SERVING as long as it runs. Every other name says whether it is ready."""

CHECK = "/grpc.health.v1.Health/Check"


class Pool(futures.ThreadPoolExecutor):
    """Worker threads with a bounded queue: `full` says when a further call must be turned away."""

    def __init__(self, workers: int, *, queue: int, name: str) -> None:
        super().__init__(max_workers=workers, thread_name_prefix=name)
        self.name = name
        self.limit = workers + queue
        self._pending = 0
        self._pending_lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        """Queues a call and counts it until it is done."""
        with self._pending_lock:
            self._pending += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: futures.Future[Any]) -> None:
        with self._pending_lock:
            self._pending -= 1

    @property
    def pending(self) -> int:
        """Calls that wait or run."""
        return self._pending

    @property
    def full(self) -> bool:
        """Whether the workers are busy and the queue is at its limit."""
        return self._pending >= self.limit


def count_pending(pools: Iterable[Pool], registry: CollectorRegistry) -> None:
    """How many calls each pool has, beside how many it takes: time in a queue is in no histogram."""
    pending = Gauge(
        "tandem_rpc_pending", "Calls that wait or run, by their pool of workers.", ["pool"], registry=registry
    )
    limit = Gauge(
        "tandem_rpc_pending_limit",
        "Calls that may wait or run in the pool; a further one is RESOURCE_EXHAUSTED.",
        ["pool"],
        registry=registry,
    )
    for pool in pools:
        pending.labels(pool.name).set_function(lambda pool=pool: pool.pending)  # type: ignore[misc]
        limit.labels(pool.name).set(pool.limit)


class Server:
    """A gRPC server with our rules.

    address: host:port to listen on; port 0 takes a free one (see `port`).
    workers, queue: calls that run and calls that wait at the same time; a further one is RESOURCE_EXHAUSTED.
    registry: where its calls are counted (`rpc_metrics`); one server a registry. None: they are not.
    reserved: workers set aside for methods named in full ("/tandem.v1.CoordinatorService/Resolve"), which share them
        and which no other call can starve.
    """

    def __init__(
        self,
        address: str,
        *,
        workers: int = 32,
        queue: int = 256,
        reserved: Mapping[tuple[str, ...], int] | None = None,
        with_reflection: bool = True,
        registry: CollectorRegistry | None = None,
    ) -> None:
        registry = registry or CollectorRegistry()
        self._calls = ServerCalls(registry)
        self._pool = Pool(workers, queue=queue, name="rpc")
        self._reserved: dict[str, Pool] = {}
        for methods, count in (reserved or {}).items():
            pool = Pool(count, queue=queue, name=f"rpc-{methods[0].rpartition('/')[2]}")
            self._reserved |= dict.fromkeys(methods, pool)
        # Whoever asks how it is must be answered where every worker is busy, too.
        self._reserved[CHECK] = Pool(1, queue=64, name="rpc-health")
        count_pending({self._pool, *self._reserved.values()}, registry)
        self._turned_away = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="rpc-turned-away")
        self._server = grpc.server(
            self._pool,
            interceptors=[_Guard(self._pool, self._reserved, self._turned_away, self._calls)],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", REFUSED_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", 1_000),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        self._reflection = with_reflection
        self._names: list[str] = []
        self.health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=futures.ThreadPoolExecutor(max_workers=1)
        )
        self._ready = False
        self._leaving = False
        self._states = threading.Lock()
        self._host = address.rpartition(":")[0]
        self.port = self._bind(address)
        self._stopping = threading.Event()

    def _bind(self, address: str) -> int:
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise TandemError(f"can't listen on {address}: is another process using it?", reason=Reason.CONFIGURATION)
        return port

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self._host}:{self.port}"

    def add(self, service: Any, servicer: Any, register: Callable[[Any, grpc.Server], None]) -> None:
        """Adds a service: its descriptor (from the `_pb2` module), its servicer, its `add_…_to_server`."""
        register(servicer, self._server)
        self._names.append(service.full_name)
        for method in service.methods:
            self._calls.of(f"/{service.full_name}/{method.name}")

    def start(self) -> None:
        """Begins to serve, and says so through health."""
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if self._reflection:
            names = (*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        self.health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        self.serving(True)

    @property
    def ready(self) -> bool:
        """Whether it serves, and can."""
        return self._ready

    def serving(self, is_serving: bool) -> None:
        """Tells health whether this process can do its work. Once it leaves, it can't."""
        with self._states:
            self._ready = is_serving and not self._leaving
            state = (
                health_pb2.HealthCheckResponse.SERVING if self._ready else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            for name in ("", *self._names):
                self.health.set(name, state)

    def leave(self) -> None:
        """Tells health that it is about to stop, whatever its database says."""
        self._leaving = True
        self.serving(False)

    def drain(self, grace_s: float) -> None:
        """Turns new calls away, lets running ones finish for at most `grace_s`, then stops. Idempotent."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.leave()
        # What has arrived by now is taken up meanwhile: gRPC cancels whatever it has not handed over when it stops.
        time.sleep(min(TAKE_UP_S, grace_s))
        self._server.stop(grace_s).wait(grace_s + 1)
        for pool in (self._pool, *self._reserved.values(), self._turned_away):
            pool.shutdown(wait=False, cancel_futures=True)


class _Guard(grpc.ServerInterceptor):
    """Wraps every unary method of ours: bounded, parsed, validated, counted, its errors translated."""

    def __init__(
        self, pool: Pool, reserved: Mapping[str, Pool], turned_away: futures.ThreadPoolExecutor, calls: ServerCalls
    ) -> None:
        self._calls = calls
        self._pool = pool
        self._reserved = reserved
        self._turned_away = turned_away
        self._wrapped: dict[str, Any] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler for one call; runs on the serving thread, so it only looks things up."""
        method: str = details.method
        handler = continuation(details)
        if handler is None or handler.unary_unary is None or not (method.startswith("/tandem.") or method == CHECK):
            return handler
        pool = self._reserved.get(method, self._pool)
        if pool.full:
            return self._turn_away(method, handler)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = _on(pool, handler) if method == CHECK else self._wrap(method, handler)
            self._wrapped[method] = wrapped
        return wrapped

    def _turn_away(self, method: str, handler: Any) -> Any:
        counted = None if method == CHECK else self._calls.of(method)

        def refuse(_: bytes, context: grpc.ServicerContext) -> None:
            error = TandemError("too many calls at once", reason=Reason.OVERLOADED, retry_after_s=1)
            if counted is not None:
                counted.started.inc()
                counted.handled(code_of(error).name, 0.0)
            _abort(context, error)

        refuse.experimental_thread_pool = self._turned_away  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(refuse, None, handler.response_serializer)

    def _wrap(self, method: str, handler: Any) -> Any:
        parse: Callable[[bytes], Message] = handler.request_deserializer
        behavior = served(method, handler.unary_unary)
        counted = self._calls.of(method)

        def call(raw: bytes, context: grpc.ServicerContext) -> Any:
            started = time.monotonic()
            counted.started.inc()
            try:
                if len(raw) > MAX_MESSAGE_BYTES:
                    raise _too_large(len(raw))
                request = _parsed(parse, raw)
                validate(request)
                response = behavior(request, context)
            except Exception as caught:
                error = explained(caught)
                if error.reason is Reason.INTERNAL:
                    error = _internal(method, caught)
            else:
                counted.handled("OK", time.monotonic() - started)
                return response
            took_s = time.monotonic() - started
            counted.handled(code_of(error).name, took_s)
            log.debug("refused", method=method, reason=error.reason.value, ms=int(1e3 * took_s))
            return _abort(context, error)

        pool = self._reserved.get(method)
        if pool is not None:
            call.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)


def _on(pool: Pool, handler: Any) -> Any:
    """The same handler, run by workers of its own."""

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        return handler.unary_unary(request, context)

    call.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def time_left_s(context: grpc.ServicerContext) -> float:
    """Seconds until the caller gives up; DEFAULT_DEADLINE_S where it set no deadline."""
    left = context.time_remaining()
    return DEFAULT_DEADLINE_S if left is None else min(max(left, 0.0), DEFAULT_DEADLINE_S)


def _too_large(size: int) -> TandemError:
    return TandemError(
        f"the message is {size:,} bytes; {MAX_MESSAGE_BYTES:,} are taken",
        reason=Reason.MESSAGE_TOO_LARGE,
        metadata={"max_bytes": str(MAX_MESSAGE_BYTES)},
    )


def _parsed(parse: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return parse(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            [Violation("", "the message can't be read: it is cut off, or a text in it is not UTF-8")],
            message="the request is not a valid message of its type",
            reason=Reason.MALFORMED_MESSAGE,
        ) from error


def _internal(method: str, error: Exception) -> TandemError:
    """What the client is told of an error that nobody foresaw: a number under which the log knows more."""
    correlation_id = uuid.uuid4().hex
    log.error("internal error", method=method, correlation_id=correlation_id, exception=frames(error))
    return TandemError(
        f"an internal error; quote the correlation id {correlation_id}", metadata={"correlation_id": correlation_id}
    )


def _abort(context: grpc.ServicerContext, error: TandemError) -> None:
    context.abort_with_status(rpc_status.to_status(to_status(error)))
