"""The reconciliation: whether identity and profiles say the same, completely, and what they do not agree on.

Both sides are streamed and paged by their keys, so that memory is flat, and no local transaction is open across an RPC.
It reads beside signups, updates and backfills; it may be run at any time, and by several at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from identity_stub.migration.backfill_accounts import KINDS
from identity_stub.migration.conflicts import Existing, Policy
from identity_stub.migration.reconcile_accounts import Comparison
from identity_stub.migration.reconcile_profiles import Profiles
from identity_stub.migration.reconcile_repair import Repair
from identity_stub.migration.reconcile_report import MAX_LISTED, Report
from identity_stub.migration.reconcile_transactions import SETTLE_S, TRANSACTIONS, Transactions
from identity_stub.provisioning.two_phase import TwoPhase
from tandem.coordinator.driver import Coordinator

PARTS = (*KINDS, TRANSACTIONS)


@dataclass(frozen=True, slots=True)
class Options:
    """parts: of PARTS, which are compared. repair: put right what can be. policy: for facts that differ, with repair.

    within_s: of transactions, only those begun so lately. settle_s: how long those under way are waited for.
    listed: differences that are kept to be listed.
    """

    parts: tuple[str, ...] = PARTS
    repair: bool = False
    policy: Policy | None = None
    within_s: float | None = None
    settle_s: float = SETTLE_S
    listed: int = MAX_LISTED


class Reconciliation:
    """One run. coordinator: the initiator's, with its participants. channel: to profiles. participant: its name."""

    def __init__(
        self,
        coordinator: Coordinator,
        channel: grpc.Channel,
        options: Options,
        *,
        participant: str = "profiles",
        on_progress: Callable[[Report], object] = lambda _: None,
    ) -> None:
        self._coordinator = coordinator
        self._channel = channel
        self._options = options
        self._participant = participant
        self._on_progress = on_progress
        self._report = Report(at_most=options.listed)

    def run(self) -> Report:
        """To the end. Raises TandemError where a side can't be asked: then nothing is known of what is left."""
        began = time.monotonic()
        # Transactions first: what a restored participant lacks is explained by them, and repairs make new ones.
        if TRANSACTIONS in self._options.parts:
            self._transactions()
        self._accounts()
        self._report.seconds = time.monotonic() - began
        return self._report

    def _transactions(self) -> None:
        coordinator = self._coordinator
        for name in sorted(coordinator.participants.names):
            both = Transactions(
                coordinator.log,
                coordinator.participants,
                coordinator=coordinator.name,
                participant=name,
                within_s=self._options.within_s,
                settle_s=self._options.settle_s,
            )
            for compared, differences in both.run():
                self._report.compared[TRANSACTIONS] += compared
                self._report.add(differences)
                self._on_progress(self._report)

    def _accounts(self) -> None:
        engine = self._coordinator.engine
        provisioning = TwoPhase(self._coordinator, participant=self._participant)
        repair = Repair(engine, provisioning, Existing(self._channel), self._options.policy)
        profiles = Profiles(self._channel, self._coordinator.name)
        for kind in KINDS.values():
            if kind.name not in self._options.parts:
                continue
            for page in Comparison(engine, profiles, kind).run():
                self._report.compared[kind.name] += page.accounts
                for status, count in page.waiting.items():
                    self._report.waiting[f"{kind.name}: {status}"] += count
                differences = page.differences
                if self._options.repair and differences:
                    differences = repair.accounts(kind, differences)
                self._report.add(differences)
                self._on_progress(self._report)
