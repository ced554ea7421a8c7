"""What a participant counts. Nothing here has an id or a name of a person in a label.

A counter is its process's own: over replicas they are added up. What the database knows is in `gauges.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tandem.runtime.errors import PAGING

IN_DOUBT_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    *(60, 120, 300, 600, 1_800, 3_600, 14_400, 86_400),
)
"""From a local commit to a day: below are those that nothing happened to, above those that a person had to end."""


class ParticipantMetrics:
    """The counters of one participant, in a registry of the process's choice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.votes = Counter("tandem_votes", "Votes given, by vote and reason.", ["vote", "reason"], registry=registry)
        self.outcomes = Counter(
            "tandem_outcomes", "Outcomes applied, by outcome and who brought it.", ["outcome", "via"], registry=registry
        )
        self.in_doubt = Histogram(
            "tandem_in_doubt_seconds",
            "From prepared to ended by the database's clock, in s, by outcome and who brought it.",
            ["outcome", "via"],
            buckets=IN_DOUBT_S,
            registry=registry,
        )
        self.contradictions = Counter(
            "tandem_contradictions",
            "Two sides that can't both be right (R5). Any is a page.",
            ["reason"],
            registry=registry,
        )
        for reason in PAGING:  # there with 0 from the start: the first one is an increase, too
            self.contradictions.labels(reason.value)
        self.resolve_failures = Counter(
            "tandem_resolve_failures",
            "Questions to a coordinator that it did not answer, by reason, whoever asked.",
            ["coordinator", "reason"],
            registry=registry,
        )
        self.sweep_last_success = Gauge(
            "tandem_sweep_last_success_timestamp_seconds",
            "When the sweeper last ran to its end, in s since 1970; 0 before the first time.",
            registry=registry,
        )
        self.sweep_claimed = Counter("tandem_sweep_claimed", "Transactions the sweeper took up.", registry=registry)
        self.sweep_errors = Counter(
            "tandem_sweep_errors", "Transactions the sweeper had to leave, by reason.", ["reason"], registry=registry
        )
        self.purged = Counter("tandem_purged", "Finished transactions that were forgotten (R14).", registry=registry)

    def ended(self, outcome: str, via: str, in_doubt_s: Iterable[float]) -> None:
        """Transactions that were ended, by the seconds that each was prepared; after the local commit only."""
        observe = self.in_doubt.labels(outcome, via).observe
        count = 0
        for seconds in in_doubt_s:
            observe(max(0.0, seconds))  # the clock may have been set back
            count += 1
        self.outcomes.labels(outcome, via).inc(count)
