"""Runs the console in a thread of the process, beside its gRPC server, and ends it with it."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from coordinator.console.facts import Sources
from coordinator.console.pages import console
from coordinator.console.security import Keys
from tandem.runtime.config import host_and_port
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.telemetry import frames, logger
from tandem.runtime.watchdog import watchdog

log = logger("coordinator.console")

AT_ONCE = 32
"""Connections, whatever they say or don't; a further one is hung up on."""

CONNECTION_S = 15.0
"""For one connection, which carries one request; above the longest that a page waits."""

SAY_AGAIN_S = 60.0
"""Between two lines of the log that say the same."""

START_S = 10.0
DRAIN_S = 5
"""For requests that run when the process stops; above the longest that a page waits."""


class _Bounded(H11Protocol):
    """A connection of at most CONNECTION_S, one of AT_ONCE at most.

    uvicorn has a timer between two requests only, and its own limit counts connections without ending them.
    """

    _watched: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes it, if there is room."""
        if len(self.connections) < AT_ONCE:
            try:
                self._watched = watchdog.watch(transport.get_extra_info("socket").fileno(), CONNECTION_S)
            except (OSError, RuntimeError):
                pass  # no descriptor or no thread to be had
            else:
                super().connection_made(transport)
                return
        self.transport = transport
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, by whomever."""
        super().connection_lost(exc)
        if self._watched is not None:
            watchdog.release(self._watched)


class _Troubles:
    """What the event loop would log by itself, with texts and addresses: said without, and not again and again."""

    def __init__(self) -> None:
        self._said_at: dict[str, float] = {}

    def __call__(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            said, more = "console: the system has no room for a further connection", {}
        else:
            said, more = "console: internal error", {"exception": frames(error)} if error is not None else {}
        now = time.monotonic()
        if now - self._said_at.get(said, -math.inf) >= SAY_AGAIN_S:
            self._said_at[said] = now
            log.error(said, **more)


async def _run(server: uvicorn.Server, listening: socket.socket) -> None:
    asyncio.get_running_loop().set_exception_handler(_Troubles())
    await server.serve(sockets=[listening])


def serve_console(listen: str, token: str | None, sources: Sources, stack: ExitStack) -> str:
    """Starts it; the stack stops it. Its address. Raises ConfigurationError if it must not be served like this."""
    try:
        host, port = host_and_port(listen)
    except ValueError as error:
        raise ConfigurationError(f"COORDINATOR_CONSOLE_LISTEN {error}") from None
    keys = Keys(host, token, sources.name)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError:
        raise ConfigurationError(f"can't listen on {listen} for the console: is another process using it?") from None
    stack.callback(listening.close)
    # It logs an exception with its text; what the guard did not catch is said by `_Troubles` without.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    server = uvicorn.Server(
        uvicorn.Config(
            console(sources, keys),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http=_Bounded,
            # What has been accepted holds a descriptor before _Bounded sees it: never more of it than this.
            backlog=AT_ONCE,
            headers=[("Connection", "close")],
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    thread = threading.Thread(target=asyncio.run, args=(_run(server, listening),), name="console", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(DRAIN_S + 2)

    stack.callback(stop)
    until = time.monotonic() + START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise ConfigurationError("the console did not start")
        time.sleep(0.01)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
