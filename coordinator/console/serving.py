"""Runs the console in a thread of the process, beside its gRPC server, and ends it with it."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import ExitStack

import uvicorn

from coordinator.console.facts import Sources
from coordinator.console.pages import console
from coordinator.console.security import Keys
from tandem.runtime.errors import ConfigurationError

AT_ONCE = 32
"""Connections; a further one is told 503."""

START_S = 10.0
DRAIN_S = 5
"""For requests that run when the process stops; above the longest that a page waits."""


def serve_console(listen: str, token: str | None, sources: Sources, stack: ExitStack) -> str:
    """Starts it; the stack stops it. Its address. Raises ConfigurationError if it must not be served like this."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigurationError("COORDINATOR_CONSOLE_LISTEN must be host:port")
    keys = Keys(host, token)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, int(port)), family=family)
    except OSError:
        raise ConfigurationError(f"can't listen on {listen} for the console: is another process using it?") from None
    stack.callback(listening.close)
    # It logs an exception with its text; what the guard did not catch is said by the process without.
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
            http="h11",
            loop="asyncio",
            limit_concurrency=AT_ONCE,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="console", daemon=True)
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
