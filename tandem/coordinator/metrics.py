"""What the initiator's half counts. Nothing here has an id in a label.

A counter is its process's own: over replicas they are added up. What the decision log knows is in `gauges.py`.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from tandem.runtime.errors import PAGING
from tandem.runtime.rpc_metrics import ClientCalls


class CoordinatorMetrics:
    """The counters of one coordinator, in a registry of the process's choice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.transactions = Counter(
            "tandem_transactions",
            "Transactions driven, by how they ended for their caller.",
            ["outcome"],
            registry=registry,
        )
        self.resolves = Counter("tandem_resolves", "Answers given by Resolve.", ["outcome"], registry=registry)
        self.contradictions = Counter(
            "tandem_contradictions",
            "Two sides that can't both be right (R5). Any is a page.",
            ["reason"],
            registry=registry,
        )
        for reason in PAGING:  # there with 0 from the start: the first one is an increase, too
            self.contradictions.labels(reason.value)
        self.ended = Counter(
            "tandem_local_transactions_ended",
            "Local transactions that the block's own SQL ended: own rows may be durable without a decision (R1).",
            registry=registry,
        )
        self.recovered = Counter("tandem_recovered", "Deliveries made by recovery.", registry=registry)
        self.recovery_errors = Counter(
            "tandem_recovery_errors", "Deliveries that recovery had to leave, by reason.", ["reason"], registry=registry
        )
        self.recovery_last_success = Gauge(
            "tandem_recovery_last_success_timestamp_seconds",
            "When recovery last ran to its end, in s since 1970; 0 before the first time; absent where none runs.",
            ["coordinator"],
            registry=registry,
        )
        self.purged = Counter("tandem_purged", "Finished transactions that were forgotten (R14).", registry=registry)
        self.marks_dropped = Counter(
            "tandem_marks_dropped",
            "Acknowledgements that were not written down, the queue being full: recovery delivers again.",
            registry=registry,
        )
        self.confirms_dropped = Counter(
            "tandem_background_confirms_dropped",
            "Confirms left to recovery, the queue being full (R12).",
            registry=registry,
        )
        self.calls = ClientCalls(registry)
