"""RPCs, counted under the names that other gRPC services use, so that dashboards and alerts can be shared.

One set of them a registry: one server a process.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram

METHOD = ("grpc_type", "grpc_service", "grpc_method")
TYPE = "unary"

FAULTS = ("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN")
"""Codes that are the server's fault: they are there with 0 from the start, so that the first one is an increase."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Method:
    """What is counted of one method."""

    def __init__(self, started: Counter, handled: Counter, seconds: Histogram, labels: Iterable[str]) -> None:
        self._labels = tuple(labels)
        self._handled = handled
        self.started = started.labels(*self._labels)
        self._seconds = seconds.labels(*self._labels)
        for code in ("OK", *FAULTS):
            handled.labels(*self._labels, code)

    def handled(self, code: str, seconds: float) -> None:
        """A call that was answered with this status code, so many seconds after it was taken up."""
        self._handled.labels(*self._labels, code).inc()
        self._seconds.observe(seconds)


class ServerCalls:
    """The calls that a server answers. Time in its queue does not count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started", "Calls taken up or turned away.", METHOD, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls answered, by status code.", (*METHOD, "grpc_code"), registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "From taking a call up to its answer, in s.",
            METHOD,
            buckets=SECONDS,
            registry=registry,
        )
        self._methods: dict[str, Method] = {}

    def of(self, path: str) -> Method:
        """The counters of a method ("/package.Service/Method")."""
        found = self._methods.get(path)
        if found is None:
            labels = (TYPE, *_names(path))
            found = self._methods[path] = Method(self._started, self._handled, self._seconds, labels)
        return found


class ClientCalls:
    """The calls that a client makes, each attempt by itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "grpc_client_handled", "Calls made, by status code.", (*METHOD, "grpc_code"), registry=registry
        )

    def handled(self, path: str, code: str) -> None:
        """A call of a method ("/package.Service/Method") that has come to this status code."""
        self._handled.labels(TYPE, *_names(path), code).inc()


def _names(path: str) -> tuple[str, str]:
    service, _, method = path.lstrip("/").partition("/")
    return service, method
