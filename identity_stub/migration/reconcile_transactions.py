"""The decision log compared with what a participant holds: a merge of two streams in the order of the ids.

Only commits are streamed: an abort leaves nothing behind. What stands on one side only is looked up on both, and what
is under way once more until it has ended or the time is over: transactions go on meanwhile. Ids that have expired are
left out: either side may have forgotten them (R14).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from identity_stub.migration.reconcile_report import Difference, Kind
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.coordinator.transaction import Decided, Outcome, Standing
from tandem.runtime import paging
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import DAY_MS, TransactionKey, id_time_ms
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import transaction_pb2

PAGE = 1_000
ASK_S = 10.0
"""For one answer of a participant."""

SETTLE_S = 20.0
"""How long what is under way is waited for, in all: above the driver's deadline and a delivery, below the ttl."""

PAUSE_S = 0.5
SPARE_S = 3_600.0
"""The sides' clocks differ a little, and one page comes after the other: what is asked for lies this much before."""

TRANSACTIONS = "transactions"
_COMMITTED = transaction_pb2.TRANSACTION_STATE_COMMITTED
_PREPARED = transaction_pb2.TRANSACTION_STATE_PREPARED


class Commit(NamedTuple):
    """A row of either side that says committed."""

    id: UUID
    digest: bytes


class Transactions:
    """The decision log beside one participant.

    coordinator: the initiator's name. within_s: only what began so lately; at most retention − 1 day.
    """

    def __init__(
        self,
        log: DecisionLog,
        participants: Participants,
        *,
        coordinator: str,
        participant: str,
        within_s: float | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._log = log
        self._participants = participants
        self._coordinator = coordinator
        self._participant = participant
        kept_s = (log.times.retention_ms - DAY_MS) / 1000
        self._within_s = kept_s if within_s is None else min(within_s, kept_s)
        self._settle_s = settle_s

    def run(self) -> Iterator[tuple[int, list[Difference]]]:
        """(how many compared, differences), now and again. Raises TandemError where a side can't be asked."""
        since_ms = int(paging.clock(self._log.engine).timestamp() * 1000 - self._within_s * 1000)
        until = time.monotonic() + self._settle_s
        compared = 0
        suspects: list[UUID] = []
        for here, there in merged(self._decided(since_ms), self._held(since_ms)):
            compared += 1
            if here != there:
                one = here or there
                assert one is not None
                suspects.append(one.id)
            if compared >= PAGE:
                yield compared, self._settled(suspects, until)
                compared, suspects = 0, []
        yield compared, self._settled(suspects, until)

    def _decided(self, since_ms: int) -> Iterator[Commit]:
        token = ""
        while True:
            rows, token = self._log.page(
                outcome=Outcome.COMMITTED,
                participant=self._participant,
                coordinator=self._coordinator,
                begun_within_s=self._within_s + SPARE_S,
                size=PAGE,
                token=token,
            )
            for row in rows:
                if id_time_ms(row.transaction_id) >= since_ms:
                    yield Commit(row.transaction_id, bytes.fromhex(row.participants[self._participant]))
            if not token:
                return

    def _held(self, since_ms: int) -> Iterator[Commit]:
        within = Duration()
        within.FromNanoseconds(int((self._within_s + SPARE_S) * 1e9))
        request = pb.ParticipantServiceListTransactionsRequest(
            state=_COMMITTED, coordinator=self._coordinator, begun_within=within, page_size=PAGE
        )
        while True:
            page = self._participants.page(self._participant, request, timeout_s=ASK_S)
            for held in page.transactions:
                id_ = UUID(held.key.transaction_id)
                if id_time_ms(id_) >= since_ms:
                    yield Commit(id_, held.digest)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def _settled(self, suspects: Sequence[UUID], until: float) -> list[Difference]:
        """What is different of these, when they have ended or the time is over."""
        differences: list[Difference] = []
        while suspects:
            looked = [one for id_ in suspects if (one := self._look(id_)) is not None]
            waiting = [one for one in looked if one.kind is Kind.UNFINISHED and time.monotonic() < until]
            differences += [one for one in looked if one not in waiting]
            suspects = [UUID(one.id.rpartition("/")[2]) for one in waiting]
            if suspects:
                time.sleep(PAUSE_S)
        return differences

    def _look(self, id_: UUID) -> Difference | None:
        """Both sides of one transaction, the participant first: what is committed there was decided before."""
        key = TransactionKey(self._coordinator, id_)
        held = self._participants.get(self._participant, key, timeout_s=ASK_S)
        decided = self._log.look([key], fence=False)[key]
        if isinstance(decided, TandemError):
            return self._difference(Kind.DIFFERENT, id_, "unreadable")
        state = None if held is None else held.state
        if isinstance(decided, Decided) and decided.outcome is Outcome.COMMITTED:
            if held is None:
                return self._difference(Kind.MISSING, id_)
            if state == _PREPARED:
                return self._difference(Kind.UNFINISHED, id_)
            if state != _COMMITTED:
                return self._difference(Kind.DIFFERENT, id_, "outcome")
            return (
                None
                if decided.participants.get(self._participant) == held.digest
                else self._difference(Kind.DIFFERENT, id_, "digest")
            )
        if state != _COMMITTED or decided in (Standing.EXPIRED, Standing.AHEAD):
            return None
        if decided is Standing.IN_PROGRESS:
            return self._difference(Kind.UNFINISHED, id_)
        return self._difference(Kind.EXTRA, id_, "aborted" if isinstance(decided, Decided) else "undecided")

    def _difference(self, kind: Kind, id_: UUID, *fields: str) -> Difference:
        return Difference(TRANSACTIONS, kind, f"{self._participant} {self._coordinator}/{id_}", fields)


def merged(left: Iterator[Commit], right: Iterator[Commit]) -> Iterator[tuple[Commit | None, Commit | None]]:
    """The two in step by their ids, each ascending; None where one of them lacks it."""
    mine, other = next(left, None), next(right, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine.id < other.id):
            yield mine, None
            mine = next(left, None)
        elif mine is None or other.id < mine.id:
            yield None, other
            other = next(right, None)
        else:
            yield mine, other
            mine, other = next(left, None), next(right, None)
