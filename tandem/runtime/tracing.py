"""Traces, by OpenTelemetry: off and free of cost unless the environment says where they go. Needs the extra `tracing`.

Spans hold names, transactions and reasons, never an exception's text or anything that a user sent. Each has the
transactions that it is about, so that those of one transaction are found by its name, whichever trace they are in: what
a sweeper or recovery does later has no caller to belong to, and a message may carry transactions of several callers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

import grpc

from tandem.runtime.errors import ConfigurationError, TandemError

TRANSACTION = "tandem.transaction_id"
"""The attribute: "coordinator/id" as in logs; a list where there are several."""

TRANSACTIONS = "tandem.transactions"
"""How many there are, where there are several."""

MOST = 20
"""Transactions that a span names (R16)."""

FLUSH_S = 3.0
"""How long a process that stops waits for its last spans to be taken."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_OFF: AbstractContextManager[Any] = nullcontext()
_PROPAGATED = ("traceparent", "tracestate")

_tracer: Any = None
"""None: off."""

_provider: Any = None


def configure(service: str) -> None:
    """Begins to trace if the environment names an endpoint (OTLP over gRPC). Everything else is OpenTelemetry's own:
    OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_SDK_DISABLED. Raises ConfigurationError where the extra is missing.
    """
    environment = os.environ
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "")
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and tracing is not installed: pip install 'tandem[tracing]'"
        ) from None
    name = environment.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def use(provider: Any) -> None:
    """Traces with an OpenTelemetry TracerProvider of one's own; None turns it off."""
    global _tracer, _provider
    _provider = provider
    _tracer = None if provider is None else provider.get_tracer("tandem")


def shut_down() -> None:
    """Sends what is left, for FLUSH_S at most."""
    provider = _provider
    use(None)
    if provider is not None:
        # In a thread: an exporter whose collector is away has patience of its own.
        flushing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


def span(name: str, about: Collection[Any] = ()) -> AbstractContextManager[Any]:
    """One piece of work. about: the transactions, as keys or as whatever has a `key`."""
    return _OFF if _tracer is None else _span(name, about)


def about(transactions: Collection[Any]) -> None:
    """Says what the current span is about, once that is known."""
    if _tracer is not None:
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_attributes(transactions))


def outgoing() -> tuple[tuple[str, str], ...] | None:
    """The metadata with which a call goes on with the current trace; None where there is none."""
    if _tracer is None:
        return None
    carrier: dict[str, str] = {}
    _propagator().inject(carrier)
    return tuple(carrier.items()) or None


def served(method: str, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A servicer's method that goes on with its caller's trace."""
    name = method.lstrip("/")

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if _tracer is None:
            return behavior(request, context)
        from opentelemetry.trace import SpanKind

        sent = {key: value for key, value in context.invocation_metadata() or () if key in _PROPAGATED}
        with _span(name, (), kind=SpanKind.SERVER, context=_propagator().extract(sent)):
            return behavior(request, context)

    return call


@contextmanager
def _span(name: str, transactions: Collection[Any], **options: Any) -> Iterator[Any]:
    # An exception's text may hold anything: its reason, or its type, is all that is kept.
    with _tracer.start_as_current_span(
        name, attributes=_attributes(transactions), record_exception=False, set_status_on_exception=False, **options
    ) as made:
        try:
            yield made
        except BaseException as error:
            from opentelemetry.trace import Status, StatusCode

            told = error.reason.value if isinstance(error, TandemError) else type(error).__name__
            made.set_status(Status(StatusCode.ERROR, told))
            raise


def _attributes(transactions: Collection[Any]) -> Mapping[str, Any]:
    match [str(getattr(one, "key", one)) for one in islice(transactions, MOST)]:
        case []:
            return {}
        case [name]:
            return {TRANSACTION: name}
        case names:
            return {TRANSACTION: names, TRANSACTIONS: len(transactions)}


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
