"""One transaction's story on both sides, as values, and what a person is told of it. Pure: no I/O.

Both halves' command lines, the console and initiators share it. Nothing is personal: ids, times, states, reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

BROUGHT_BY = {
    "coordinator": "the initiator's own driver",
    "recovery": "recovery",
    "sweeper": "the sweeper there",
    "reader": "a reader that met it",
    "push": "another transaction that needed the same",
    "operator": "an operator, by force",
}

PARKED = {
    "expired": "no decision was written, and its id is too old for one",
    "TRANSACTION_UNKNOWN": "the participant knows nothing of what it had promised",
    "TRANSACTION_EXPIRED": "the participant knows nothing of it, and its id is too old to be known",
    "ALREADY_COMMITTED": "it is committed there, and the decision is aborted",
    "ALREADY_ABORTED": "it is aborted there, and the decision is committed",
    "PUBLISHED_NOT_STAGED": "it is committed, and not all that was staged for it is there",
}
"""Why something waits for a person (R5), in words."""

ANSWERS = frozenset({"committed", "aborted", "undecided", "expired", "in_progress", "wrong_log"})
"""What asking for a decision can come to, beside the reason why it came to nothing: see `came_of`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision log's row."""

    outcome: str
    decided_at: datetime
    attempts: int
    next_attempt_at: datetime | None
    last_error: str


@dataclass(frozen=True, slots=True)
class Branch:
    """One participant's side.

    listed: the decision lists it. acknowledged, parked: what the log says of it. trouble: why it could not be asked; ""
    where it was. state: "prepared", "committed", "aborted"; "" where it knows nothing. tombstone: an Abort came before
    anything was staged. confirmed: the coordinator's own decision stands behind the state. asks_at, asked, last_answer:
    when its sweeper asks for the decision, how often it has, and what came of it.
    """

    participant: str
    listed: bool = False
    acknowledged: bool = False
    parked: str = ""
    trouble: str = ""
    state: str = ""
    tombstone: bool = False
    rows: int = 0
    confirmed: bool = True
    prepared_at: datetime | None = None
    resolved_at: datetime | None = None
    resolved_by: str = ""
    asks_at: datetime | None = None
    parked_there: str = ""
    asked: int = 0
    last_answer: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """What an operator did by hand."""

    at: datetime
    actor: str
    action: str
    detail: str
    reason: str

    def sentence(self) -> str:
        """Who did what, when and why."""
        return f"{self.actor} did `{self.action}` ({self.detail}) by hand at {at(self.at)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class BothSides:
    """What is known of one transaction.

    now: the database's clock (R13). has_rows: the initiator's own rows are there, so it was committed, whatever is left
    of its decision.
    """

    now: datetime
    decision: Decision | None
    branches: Sequence[Branch]
    has_rows: bool = False

    def sides(self) -> Iterator[str]:
        """What each participant holds."""
        for branch in self.branches:
            yield self._side(branch)
            if self.contradicts(branch):
                yield f"That contradicts what is known here: a person must look at {branch.participant}."

    def _side(self, b: Branch) -> str:
        if b.trouble:
            return f"{b.participant} could not be asked what it holds ({b.trouble})."
        return held(b, self.now)

    def contradicts(self, b: Branch) -> bool:
        """Whether the two sides can't both be right."""
        if b.trouble:
            return False
        if self.decision is None:
            return self.has_rows and b.state in ("prepared", "aborted")
        if self.decision.outcome == "committed":
            return b.state == "aborted" or (b.listed and not b.state and not b.acknowledged)
        return b.state == "committed"

    def left(self) -> Iterator[str]:
        """What is left to do, and who will do it when."""
        found = [sentence for branch in self.branches for sentence in self._left_at(branch)]
        if found:
            yield from found
        elif any(branch.trouble and not branch.acknowledged for branch in self.branches):
            yield "Whether anything is left to do can be said when it can be asked."
        elif not any(self.contradicts(branch) for branch in self.branches):
            yield "Nothing is left to do."

    def _left_at(self, b: Branch) -> Iterator[str]:
        name, decision = b.participant, self.decision
        if b.parked:
            yield f"The delivery to {name} is parked ({b.parked}): automatic work on it has ended, a person must look."
        if b.parked_there:
            yield f"{name} has parked it ({b.parked_there}): its sweeper leaves it alone, a person must look."
        if b.state in ("committed", "aborted") and not b.confirmed:
            yield f"An operator has forced this at {name}; its sweeper asks until the coordinator has answered."
        if decision is not None and decision.outcome == "committed":
            if b.listed and not b.acknowledged and not b.parked:
                done = " It is visible there already, so that changes nothing." if b.state == "committed" else ""
                yield f"{name} has not acknowledged it: recovery delivers it {self._again(decision)}.{done}"
            if b.state == "prepared" and not b.parked_there:
                by = f"so does the sweeper there, {self._due(b)}"
                yield f"A reader who meets it there makes it visible at once; {by}."
        elif b.state == "prepared" and not b.parked_there:
            undecided = ": if it is undecided still, it is aborted" if decision is None else ""
            yield f"The sweeper there asks for the decision {self._due(b)} and ends it{undecided}."

    def _again(self, decision: Decision) -> str:
        due = decision.next_attempt_at
        when = "as soon as it runs" if due is None or due <= self.now else f"at {at(due)} at the latest"
        tried = f" ({decision.attempts} attempts so far)" if decision.attempts else ""
        return when + (f"; the last attempt failed: {decision.last_error}{tried}" if decision.last_error else tried)

    def _due(self, b: Branch) -> str:
        """When a participant's sweeper asks."""
        return "with its next sweep" if b.asks_at is None or b.asks_at <= self.now else f"from {at(b.asks_at)} on"


def without_decision(expired: bool) -> str:
    """That there is none. expired: the id is older than decisions are kept."""
    if expired:
        return "Its id is older than decisions are kept: if there was one, it has been purged."
    return "No decision was written for it: it is not committed."


def decided_aborted(decision: Decision) -> str:
    """That it was aborted, and who writes so."""
    return (
        f"It was decided at {at(decision.decided_at)}: aborted, so that it can never commit. That is written "
        "by its driver after a failure, or for whoever finds it in doubt for too long."
    )


def held(b: Branch, now: datetime) -> str:
    """What a participant that was asked holds."""
    name, rows = b.participant, f"{b.rows} row{'' if b.rows == 1 else 's'}"
    brought = f"the outcome was brought by {BROUGHT_BY.get(b.resolved_by, 'somebody unknown')}"
    if b.tombstone:
        return f"{name} was told to abort it before anything was staged; {brought}."
    if b.state == "committed" and b.prepared_at and b.resolved_at:
        span = took(b.resolved_at - b.prepared_at)
        return f"{name} staged {rows} at {at(b.prepared_at)} and made them visible {span} later; {brought}."
    if b.state == "aborted" and b.prepared_at and b.resolved_at:
        span = took(b.resolved_at - b.prepared_at)
        return f"{name} staged {rows} at {at(b.prepared_at)} and discarded them {span} later; {brought}."
    if b.state == "prepared" and b.prepared_at:
        since = f"since {at(b.prepared_at)} ({took(now - b.prepared_at)})"
        return f"{name} holds {rows} prepared {since}: promised, and invisible still."
    if b.acknowledged:
        return f"{name} has acknowledged it and no longer knows it: finished ones are purged in time."
    return f"{name} knows nothing of it."


def at_participant(b: Branch, coordinator: str, now: datetime) -> Iterator[str]:
    """A participant's own view, told: what it holds, what that means, and what comes next and when."""
    yield held(b, now)
    if b.state == "prepared":
        yield f"It is in doubt: {b.participant} has promised that it can commit, and does not know what was decided."
    elif not b.confirmed:
        yield "An operator has forced that, and the coordinator's own decision does not stand behind it yet."
    if b.asked:
        answer = f", the last time in vain: {b.last_answer}" if b.last_answer else ""
        yield f"{coordinator} was asked for the decision {b.asked} time{'' if b.asked == 1 else 's'}{answer}."
    if b.parked_there:
        yield (
            f"It is parked ({parked(b.parked_there)}): the sweeper leaves it alone, a person must look. `resolve` asks "
            f"once more, {'`force` ends it by hand' if b.state == 'prepared' else '`close` ends the asking'}."
        )
    elif not b.confirmed:
        then = (
            ", and ends it as decided: if it is undecided still, it is aborted for good"
            if b.state == "prepared"
            else ": agreement confirms it, contradiction parks it"
        )
        yield f"The sweeper asks {coordinator} for the decision {when(b.asks_at, now)}{then}."
    else:
        yield "The coordinator's decision stands behind it. Nothing is left to do."


def came_of(answer: str) -> str:
    """What asking for one decision by hand has come to. answer: an outcome or another answer of the coordinator's as
    Resolve has them, in lower case; or the reason why it could not be ended."""
    later = "nothing was changed, and the sweeper asks again"
    match answer:
        case "committed":
            return "it was decided committed: published"
        case "aborted":
            return "it was decided aborted: discarded"
        case "undecided":
            return f"it is undecided, and its driver may still be at work: {later}"
        case "expired":
            return "no decision was written, and its id is too old for one: only `force` can end it"
        case "in_progress" | "wrong_log":
            return f"the answer was {answer.upper()}: {later}"
    return f"it could not be ended ({answer}): {later}"


def at_stake(participant: str, outcome: str, decision: str | None) -> Iterator[str]:
    """What a forced outcome risks (R5). decision: the log's; "" where it holds none, None where it can't be known."""
    if decision == outcome:
        yield f"The decision log says {decision}, too. To ask now ends it the same way, without anything heuristic."
    elif decision:
        yield f"The decision log says {decision}, and nobody can change that: this splits the transaction for certain."
    elif decision is None:
        yield "It is another coordinator's transaction: what was decided is not known here."
    elif outcome == "committed":
        yield (
            "No decision was written. Unless its initiator still commits it, the next question of the sweeper there "
            "makes it aborted for good, and that contradicts what you force."
        )
    else:
        yield (
            "No decision was written so far; its initiator may still commit it. To ask now is safer: once its driver "
            "has given up, that makes it aborted for good on both sides."
        )
    if outcome == "committed":
        yield (
            f"What is lost if the decision says aborted: the initiator's side does not exist, and the rows at "
            f"{participant} are visible without it. Nobody takes them back: they have to be deleted by hand."
        )
    else:
        yield (
            f"What is lost if the decision says committed: the initiator's side exists, and what {participant} had "
            "promised for it is deleted. Nothing here can bring it back: it has to be made again by hand."
        )
    yield (
        "The outcome is heuristic: it is counted and kept with your name and reason, and the sweeper there goes on "
        "asking for the decision. Agreement confirms it; contradiction parks it and pages."
    )


def parked(reason: str) -> str:
    """A reason with its meaning."""
    return f"{reason}: {PARKED[reason]}" if reason in PARKED else reason


def when(due: datetime | None, now: datetime) -> str:
    """A time to come, absolute and relative."""
    if due is None or due <= now:
        return "with its next run, which is due now"
    return f"at {at(due)}, in {words(due - now)}"


def at(moment: datetime) -> str:
    """A point in time, to the ms."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03} UTC"


def took(span: timedelta) -> str:
    """A measured span as people say it: ms below a second, then s, minutes, hours, days."""
    s = max(span.total_seconds(), 0.0)
    if s < 1:
        return f"{s * 1000:.0f} ms"
    if s < 120:
        return f"{s:.1f} s"
    for unit, size in (("minutes", 60), ("hours", 3600)):
        if s < 120 * size or (unit == "hours" and s < 48 * size):
            return f"{s / size:.0f} {unit}"
    return f"{s / 86400:.0f} days"


def words(span: timedelta) -> str:
    """An age in words, rounded down: "3 minutes"."""
    s = span.total_seconds()
    if s < 1:
        return "less than a second"
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if s >= size:
            count = int(s // size)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    raise AssertionError
