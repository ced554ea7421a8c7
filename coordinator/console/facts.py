"""What the overview and the lists show: gathered from the decision log and, over gRPC, from each participant.

Reads only. Everything is asked at once and with a deadline; a participant that does not answer is shown as such.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sqlalchemy.engine import Row

from coordinator.console.remote import Operations
from tandem.coordinator import story
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.runtime.errors import TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.paging import clock
from tandem.runtime.telling import Branch
from tandem.runtime.wire import key_from
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import transaction_pb2

ASK_S = 2.0
"""For each answer of a participant on the overview: two are asked for one after the other, both within this."""

LOOKED_AT = 1_000
"""Transactions that the overview looks at, of a kind and a participant."""

WINDOWS_S = (3_600, 300, 20)
"""How far back outcomes are counted: the first that holds no more than LOOKED_AT."""

AGES = (("under 10 s", 10), ("10 s to 1 minute", 60), ("1 to 10 minutes", 600), ("10 minutes to 1 hour", 3_600),
        ("1 hour to 1 day", 86_400), ("over 1 day", math.inf))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts are read. name: the coordinator's. The engine and the channels are for the console's requests.

    operations: the participants that take orders.
    """

    name: str
    log: DecisionLog
    participants: Participants
    operations: Operations = field(default_factory=lambda: Operations({}, {}))


@dataclass(frozen=True, slots=True)
class Held:
    """A transaction as a participant holds it."""

    key: TransactionKey
    branch: Branch


@dataclass(frozen=True, slots=True)
class Lately:
    """How what began lately has ended at one participant. What began before is not in it, whenever it ended.

    window_s: begun within so many seconds. shown_all: whether that is all, or the first LOOKED_AT. ended: (state, by
    whom) → how many. p50_s, p99_s: from prepared to ended, by the participant's own clock; None where none has. There
    is no p99_s of a window below the longest: what takes longer than the window could not be in it.
    """

    window_s: int
    shown_all: bool
    ended: dict[tuple[str, str], int]
    p50_s: float | None
    p99_s: float | None

    @property
    def whole(self) -> bool:
        """Whether the window did not have to be shortened."""
        return self.window_s == WINDOWS_S[0]


@dataclass(frozen=True, slots=True)
class AtParticipant:
    """What one participant has answered; trouble: why it has not. more: there are more than the LOOKED_AT shown."""

    name: str
    trouble: str = ""
    open: Sequence[Held] = ()
    more: bool = False
    lately: Lately | None = None

    @property
    def in_doubt(self) -> list[Held]:
        """Prepared, and waiting for the decision by itself."""
        return [held for held in self.open if held.branch.state == "prepared"]

    @property
    def parked(self) -> list[Held]:
        """Waiting for a person."""
        return [held for held in self.open if held.branch.parked_there]

    @property
    def forced(self) -> list[Held]:
        """Ended by an operator; no decision stands behind it yet."""
        return [held for held in self.open if held.branch.state != "prepared"]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram. share: of the tallest, 0 to 1."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything on the first page. more_undelivered: there are more than the LOOKED_AT that were looked at."""

    now: datetime
    participants: Sequence[AtParticipant]
    undelivered: Sequence[Row[Any]]
    more_undelivered: bool
    parked: Sequence[Row[Any]] = field(default=())

    def is_late(self, moment: datetime, after_s: float) -> bool:
        """Whether that lies further back."""
        return (self.now - moment).total_seconds() > after_s

    @property
    def in_doubt_ages(self) -> list[Bar]:
        """Ages of what is in doubt, over all participants that answered."""
        prepared = (held.branch.prepared_at for one in self.participants for held in one.in_doubt)
        return histogram([(self.now - at).total_seconds() for at in prepared if at is not None])

    @property
    def undelivered_ages(self) -> list[Bar]:
        """Ages of the decisions that a participant has not acknowledged, parked ones included."""
        return histogram([(self.now - row.decided_at).total_seconds() for row in self.undelivered])


def overview(sources: Sources) -> Overview:
    """The first page's facts."""
    log = sources.log
    undelivered, more = log.page(undelivered=True, coordinator=sources.name, size=LOOKED_AT)
    return Overview(
        clock(log.engine),
        story.each(sorted(sources.participants.names), lambda name: _at(sources, name)),
        undelivered,
        bool(more),
        [row for row in undelivered if row.parked],
    )


def held_at(
    sources: Sources,
    name: str,
    *,
    size: int = LOOKED_AT,
    token: str = "",
    timeout_s: float = ASK_S,
    **filters: Any,
) -> tuple[list[Held], str]:
    """A page of what one participant holds of this coordinator's. Raises TandemError if it can't be asked."""
    request = pb.ParticipantServiceListTransactionsRequest(
        coordinator=sources.name, page_size=size, page_token=token, **filters
    )
    answer = sources.participants.page(name, request, timeout_s=timeout_s)
    held = [Held(key_from(shown.key), Branch(name, **story.held_there(shown))) for shown in answer.transactions]
    return held, answer.next_page_token


def _at(sources: Sources, name: str) -> AtParticipant:
    try:
        found, more = held_at(sources, name, unconfirmed=True, timeout_s=ASK_S / 2)
    except TandemError as error:
        return AtParticipant(name, trouble=error.reason.value)
    try:
        return AtParticipant(name, open=found, more=bool(more), lately=_lately(sources, name))
    except TandemError:
        return AtParticipant(name, open=found, more=bool(more))


def _lately(sources: Sources, name: str) -> Lately:
    timeout_s = ASK_S / 2 / len(WINDOWS_S)
    for window_s in WINDOWS_S:
        within = Duration(seconds=window_s)
        held, more = held_at(sources, name, begun_within=within, timeout_s=timeout_s)
        if not more:
            break
    ended = [h.branch for h in held if h.branch.resolved_at is not None]
    took = [
        (b.resolved_at - b.prepared_at).total_seconds()
        for b in ended
        if b.resolved_at is not None and b.prepared_at is not None and not b.tombstone
    ]
    p99_s = percentile(took, 99) if window_s == WINDOWS_S[0] else None
    counts = Counter((b.state, b.resolved_by) for b in ended)
    return Lately(window_s, not more, dict(sorted(counts.items())), percentile(took, 50), p99_s)


def percentile(values: Iterable[float], percent: float) -> float | None:
    """By the nearest rank: the smallest value that so many percent do not exceed; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def histogram(ages_s: Sequence[float]) -> list[Bar]:
    """How many ages lie in each of AGES; a negative one counts as the youngest."""
    counts = [0] * len(AGES)
    for age_s in ages_s:
        counts[next(i for i, (_, below) in enumerate(AGES) if age_s < below)] += 1
    tallest = max(counts) or 1
    return [Bar(label, count, count / tallest) for (label, _), count in zip(AGES, counts, strict=True)]


PREPARED = transaction_pb2.TRANSACTION_STATE_PREPARED


def duration(age_s: float) -> Duration:
    """An age for a filter."""
    return Duration(seconds=min(int(age_s), 100 * 365 * 86_400))


def utc(moment: datetime) -> datetime:
    """A row's time as it is shown."""
    return moment.astimezone(UTC)
