"""What a backfill is told, and what it reports while many batches are on their way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from identity_stub.migration.backfill_accounts import BUSINESSES, USERS, WHOLE, Kind, Shard
from identity_stub.migration.conflicts import Policy
from identity_stub.users import ABSENT
from tandem.runtime.errors import TandemError

MAX_BATCH = 1_000
"""Writes in one transaction (participant.proto)."""

BATCH = 500
"""By default. More is hardly quicker, and who signs up meanwhile waits longer."""

PATIENCE_S = 60.0
"""How long a batch is tried again without getting on. Then the backfill gives up; it is run again, and goes on."""


@dataclass(frozen=True, slots=True)
class Options:
    """status: which accounts are taken up, ABSENT or REJECTED. rate: accounts a second at most; None: as many as go.

    batch: accounts in one transaction, 1 to MAX_BATCH. threads: batches on their way at the same time.
    """

    kinds: Sequence[Kind] = (USERS, BUSINESSES)
    status: str = ABSENT
    shard: Shard = WHOLE
    policy: Policy = Policy.KEEP
    batch: int = BATCH
    threads: int = 4
    rate: float | None = None
    dry_run: bool = False
    patience_s: float = PATIENCE_S


@dataclass(slots=True)
class Report:
    """What has become of the accounts; of a dry run: what would.

    created: by kind. refused: by reason. conflicts: kept, overwritten, merged. fields: that differed in them.
    elsewhere: accounts that no longer waited when they were read: another run's, or an attempt's of which nothing was
    heard. stopped: why it gave up; "" where it did not.
    """

    total: int = 0
    created: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    retries: int = 0
    stopped: str = ""
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Accounts that have been seen to."""
        return self.created.total() + self.refused.total() + self.conflicts.total() + self.elsewhere

    def as_dict(self) -> dict[str, object]:
        """For programs."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        told = {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}
        return {**told, "done": self.done}


class Ledger:
    """The report while many batches write to it. on_change: told of it after each change, one at a time."""

    def __init__(self, on_change: Callable[[Report], object]) -> None:
        self.report = Report()
        self.stopping = threading.Event()
        self._on_change = on_change
        self._lock = threading.Lock()

    def change(self, how: Callable[[Report], object]) -> None:
        """Changes it."""
        with self._lock:
            how(self.report)
            self._on_change(self.report)

    def stop(self, error: TandemError) -> None:
        """Nothing more is begun; the first reason stays."""
        with self._lock:
            self.report.stopped = self.report.stopped or f"{error.reason.value}: {error.message}"
        self.stopping.set()

    def conflict(self, policy: Policy, differ: Sequence[str]) -> None:
        """One more, in which these fields differed."""

        def count(report: Report) -> None:
            report.conflicts[policy.done] += 1
            report.fields.update(differ)

        self.change(count)
