"""Traces over a house: one from the driver to the participant's statements, each span with the transaction's name.

Nothing of anybody is in it, and nothing is traced at all where it is not asked for.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from uuid import UUID

import grpc
import pytest
import sqlalchemy as sa
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tandem.coordinator.errors import Refused
from tandem.runtime import tracing
from tests.support.house import House, built, entry, fresh_name, own

ROOT = Path(__file__).parents[2]
PREPARE, COMMIT, ABORT = (f"tandem.v1.ParticipantService/{method}" for method in ("Prepare", "Commit", "Abort"))
RESOLVE = "tandem.v1.CoordinatorService/Resolve"


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database, names=["ledger"]) as made:
        yield made


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What is traced from now on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)
    provider.shutdown()


def tree(exporter: InMemorySpanExporter) -> dict[str, str]:
    """name → its parent's name, "" for a root."""
    done = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in done if span.context}
    found = {span.name: names[span.parent.span_id] if span.parent else "" for span in done}
    assert len(found) == len(done), "each once"
    return found


def ended(exporter: InMemorySpanExporter, *names: str) -> list[ReadableSpan]:
    """All spans, once those with these names have ended: a server's end after its answer."""
    for _ in range(500):
        done = list(exporter.get_finished_spans())
        if set(names) <= {span.name for span in done}:
            return done
        threading.Event().wait(0.01)
    raise AssertionError(f"only {[span.name for span in exporter.get_finished_spans()]}")


def about(span: ReadableSpan) -> object:
    return (span.attributes or {}).get(tracing.TRANSACTION)


def test_one_trace_from_the_driver_to_the_participant(house: House, spans: InMemorySpanExporter) -> None:
    """The block, its votes, its local commit and its confirmation, and what each came to at the participant."""
    with house.coordinator.transaction({"ledger": [entry(fresh_name())]}) as tx:
        tx.connection.execute(sa.insert(own).values(id=tx.id))
    done = ended(spans, "tandem.transaction", PREPARE, COMMIT)
    assert tree(spans) == {
        "tandem.transaction": "",
        "tandem.prepare": "tandem.transaction",
        PREPARE: "tandem.prepare",
        "tandem.stage": PREPARE,
        "tandem.local_commit": "tandem.transaction",
        "tandem.confirm": "tandem.transaction",
        COMMIT: "tandem.confirm",
        "tandem.publish": COMMIT,
    }
    assert {about(span) for span in done} == {str(tx.key)}
    assert len({span.context.trace_id for span in done if span.context}) == 1


def left(house: House, *, decided: bool) -> UUID:
    """A transaction that nobody goes on with, due."""
    tracing.use(None)
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    if decided:
        with house.engine.begin() as connection:
            connection.execute(tx.decision)
            connection.exec_driver_sql("UPDATE twophase.decision SET next_attempt_at = now()")
    else:
        house.ledger.make_due(tx.id)
    return tx.id


def test_a_sweep(house: House, spans: InMemorySpanExporter) -> None:
    """The sweeper's question, the coordinator's answer, and what came of it: a trace of its own, found by the name."""
    provider = tracing._provider
    id_ = left(house, decided=False)
    tracing.use(provider)
    assert house.ledger.sweeper.run_once() == 1
    done = ended(spans, "tandem.sweep", RESOLVE)
    assert tree(spans) == {"tandem.sweep": "", RESOLVE: "tandem.sweep", "tandem.discard": "tandem.sweep"}
    assert {about(span) for span in done} == {f"initiator/{id_}"}
    spans.clear()
    assert house.ledger.sweeper.run_once() == 0
    assert spans.get_finished_spans() == (), "a sweep that finds nothing"


def test_a_recovery(house: House, spans: InMemorySpanExporter) -> None:
    """The same of recovery."""
    provider = tracing._provider
    id_ = left(house, decided=True)
    tracing.use(provider)
    assert house.recovery.run_once() == 1
    done = ended(spans, "tandem.recovery", COMMIT)
    assert tree(spans) == {"tandem.recovery": "", COMMIT: "tandem.recovery", "tandem.publish": COMMIT}
    assert {about(span) for span in done} == {f"initiator/{id_}"}


def test_many_at_once(house: House, spans: InMemorySpanExporter) -> None:
    """A message with many names MOST of them, and says how many there are."""
    many = tracing.MOST + 5
    with house.coordinator.transactions([{"ledger": [entry(fresh_name())]} for _ in range(many)]) as batch:
        pass
    keys = tuple(str(tx.key) for tx in batch.transactions)
    for span in ended(spans, "tandem.transactions", "tandem.v1.ParticipantService/BatchCommit"):
        names = about(span)
        assert isinstance(names, tuple)
        assert len(names) == tracing.MOST
        assert set(names) <= set(keys)
        assert (span.attributes or {})[tracing.TRANSACTIONS] == many


def test_nothing_of_anybody(house: House, spans: InMemorySpanExporter) -> None:
    """A refusal and an exception of the block's own: reasons and types, and never what was sent or said."""
    canary = fresh_name("canary")
    with house.coordinator.transaction({"ledger": [entry(canary)]}):
        pass
    with pytest.raises(Refused), house.coordinator.transaction({"ledger": [entry(canary)]}):
        pass
    with pytest.raises(ValueError, match="canary"), house.coordinator.transaction({"ledger": [entry(fresh_name())]}):
        raise ValueError(canary)
    done = ended(spans, ABORT, COMMIT)
    text = "".join(span.to_json() for span in done)
    assert canary not in text
    told = {span.status.description for span in done if span.status.description}
    assert {"ALREADY_EXISTS", "ValueError"} <= told
    assert all(not span.events for span in done)


# --- off --------------------------------------------------------------------------------------------------------------


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


OFF = """
import coordinator.app, identity_stub.app, profiles_server.app, sys
from tandem.runtime import tracing
tracing.configure("profiles")
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
assert tracing.span("a") is tracing.span("b", ["c"])
with tracing.span("a"):
    tracing.about(["c"])
assert tracing.outgoing() is None
tracing.shut_down()
"""
WITHOUT = "import sys; sys.modules['opentelemetry'] = None\n"


def test_off_unless_it_is_asked_for() -> None:
    """Without an endpoint nothing is imported, and the extra need not be there; a span is nothing, always the same."""
    done = run(WITHOUT + OFF)
    assert done.returncode == 0, done.stderr
    done = run(OFF, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_SDK_DISABLED="true")
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said() -> None:
    """An endpoint without the extra: one sentence, with the command."""
    script = """
from tandem.runtime import tracing
from tandem.runtime.errors import ConfigurationError
try:
    tracing.configure("profiles")
except ConfigurationError as error:
    print(error.message)
"""
    done = run(WITHOUT + script, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert "pip install 'tandem[tracing]'" in done.stdout


# --- sent -------------------------------------------------------------------------------------------------------------


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:
        self.got.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


SENDING = """
from tandem.runtime import tracing
tracing.configure("profiles")
with tracing.span("tandem.sweep", ["identity/1"]):
    pass
tracing.shut_down()
print("over")
"""


@pytest.mark.parametrize(("environment", "name"), [({}, "profiles"), ({"OTEL_SERVICE_NAME": "mine"}, "mine")])
def test_spans_are_sent(environment: Mapping[str, str], name: str) -> None:
    """By OTLP, before the process ends, under its name."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    done = run(SENDING, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", **environment)
    server.stop(0)
    assert done.returncode == 0, done.stderr
    (resource,) = [each for request in collector.got for each in request.resource_spans]
    (span,) = [span for scope in resource.scope_spans for span in scope.spans]
    assert span.name == "tandem.sweep"
    assert {(a.key, a.value.string_value) for a in span.attributes} == {(tracing.TRANSACTION, "identity/1")}
    assert ("service.name", name) in {(a.key, a.value.string_value) for a in resource.resource.attributes}


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    """The process ends all the same."""
    done = run(SENDING, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (0, "over\n")
