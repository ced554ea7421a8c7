"""A client of identity as it should be: a deadline on every call, and repeats with the same request id.

UNAVAILABLE, DEADLINE_EXCEEDED, a lost connection and whatever carries RetryInfo are repeated: with a request id that
can't do any harm, since the service finds its own first answer.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.runtime.channel import open_channel
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error

CALL_S = 10.0
"""One call's deadline: above the driver's own, so that it is the service that says how it ended."""

BATCH_CALL_S = 30.0
"""A batch's: those that the service has to take one by one come on top."""

TRIES = 100
PATIENCE_S = 90.0
"""Above the ttl (60 s) and a sweep: what an attempt that died has left is ended by then, whoever does it."""

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0

_WRITES = [
    f"tandem.identity.v1.IdentityService/{method}"
    for method in (
        "SignUp", "BatchSignUp", "CreateUser", "CreateBusiness", "InviteUser", "AcceptInvitation", "UpdateBusiness"
    )
]  # fmt: skip
"""The channel doesn't repeat these: without a request id a repeat would be a second one. `call` does, with one. An
update has none: after UNAVAILABLE it may have been made, and whoever asked reads again."""

_MAY_PASS = frozenset({Reason.UNAVAILABLE, Reason.DEADLINE_PASSED})


class Identity:
    """Calls identity at `target` (any gRPC name). Thread-safe; a context manager.

    patience_s: for how long one call is repeated, at most TRIES times.
    """

    def __init__(self, target: str, *, patience_s: float = PATIENCE_S) -> None:
        self._channel = open_channel(target, once=_WRITES)
        self.stub = identity_service_pb2_grpc.IdentityServiceStub(self._channel)
        self._patience_s = patience_s
        self._closing = threading.Event()

    def __enter__(self) -> Identity:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def call(self, method: Callable[..., Any], request: Message, *, retried: Callable[[], None] | None = None) -> Any:
        """The answer of `method` (of `stub`) to a request with a request id, or to one that only reads.

        retried: called before each repeat. Raises the TandemError that no repeat helps with, or the last one.
        """
        until = time.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        for tried in range(1, TRIES + 1):
            try:
                return self.once(method, request, timeout_s=max(0.1, min(CALL_S, until - time.monotonic())))
            except TandemError as caught:
                error = caught
            wait_s = max(error.retry_after_s or 0.0, pause_s) * random.uniform(1.0, 1.25)
            if not may_pass(error) or tried == TRIES or time.monotonic() + wait_s > until:
                raise error
            self.wait(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if retried is not None:
                retried()
        raise AssertionError("unreachable")

    def once(self, method: Callable[..., Any], request: Message, *, timeout_s: float = CALL_S) -> Any:
        """The answer of a single call. Raises the TandemError that it ended with."""
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError:
            if not self._closing.is_set():
                raise
            raise _closed() from None

    def wait(self, seconds: float) -> None:
        """Before a repeat. Raises a TandemError where the client is closed meanwhile."""
        if self._closing.wait(seconds):
            raise _closed()

    def close(self) -> None:
        """Ends what waits, closes the channel."""
        self._closing.set()
        self._channel.close()


def may_pass(error: TandemError) -> bool:
    """Whether the service was not reached or too busy, rather than having refused."""
    return error.retry_after_s is not None or error.reason in _MAY_PASS


def _closed() -> TandemError:
    return TandemError("the client was closed", reason=Reason.UNAVAILABLE)
