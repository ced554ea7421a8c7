"""The process's HTTP port, for machines that watch it: /metrics, /livez and /readyz. Plain text, no state, read only.

Few requests at a time, and none for long: whatever else comes is hung up on.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from tandem.runtime.watchdog import watchdog

AT_ONCE = 16
"""Requests that are answered at the same time."""

SILENT_S = 5.0
"""For a client that says nothing."""

REQUEST_S = 15.0
"""For one request in all; above the time that a Prometheus server waits by default."""

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def app(registry: CollectorRegistry, ready: Callable[[], bool]) -> App:
    """The WSGI application. /livez: the process runs. /readyz: 200, or 503 while it can't do its work."""
    metrics: App = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)
            case "/livez":
                status, text = "200 OK", "live\n"
            case "/readyz":
                status, text = ("200 OK", "ready\n") if ready() else ("503 Service Unavailable", "not ready\n")
            case _:
                status, text = "404 Not Found", "there is /metrics, /livez and /readyz\n"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", "GET or HEAD\n"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()]

    return answer


class Page(socketserver.ThreadingMixIn, WSGIServer):
    """Serves an application in a thread of its own until `close`. Raises OSError where it can't listen."""

    daemon_threads = True
    request_queue_size = AT_ONCE

    def __init__(self, host: str, port: int, application: App) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(application)
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._thread = threading.Thread(target=self.serve_forever, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops."""
        self.shutdown()
        self.server_close()
        self._thread.join(5)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, if one is left."""
        if not self._turns.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self._turns.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """For so long at most."""
        watched = None
        try:
            watched = watchdog.watch(request.fileno(), REQUEST_S)
            super().process_request_thread(request, client_address)
        except (OSError, RuntimeError):  # no descriptor or no thread to be had: what goes wrong later ends above
            self.shutdown_request(request)
        finally:
            if watched is not None:
                watchdog.release(watched)
            self._turns.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or was hung up on: nobody's business."""


class _Handler(WSGIRequestHandler):
    timeout = SILENT_S

    def log_message(self, *_: object) -> None:
        """Who asks, and how often, is in no log."""

    def address_string(self) -> str:
        """Without asking anybody for a name."""
        return str(self.client_address[0])
