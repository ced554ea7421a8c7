"""`RpcRelay` knows calls: it repeats requests, and loses replies of work that was done, as no cut of bytes can."""

from __future__ import annotations

import threading
from collections import deque
from concurrent import futures
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import Any

import grpc

CLOSE_S = 10.0


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

    `seen` holds the last calls (method, request): `again` sends one a second time, however late. `copies` counts the
    requests that a fault has sent once more, `lost` the replies that it has kept from their caller. A context manager.
    """

    def __init__(self, target: str) -> None:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0), *limits])
        self._fault: CallFault | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.copies = 0
        self.lost = 0
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
        with self._lock:
            self.copies += fault.copies
            self.lost += fault.reply is not Reply.PASSES
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
