"""What can happen next. The verdicts are the shipped functions; here is only when they are asked, and what follows.

A crash is a driver that takes no further step, a lost message one that never arrives: neither needs a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from lab.model.world import ABORTED, EXPIRING, FRESH, NOTHING, OLD, Scenario, World, name, put
from tandem.coordinator.transaction import Decided, Outcome, Phase, Vote, advance, answer_for, tally
from tandem.participant.transaction import Act, Held, State, Verdict, on_abort, on_commit, on_prepare
from tandem.runtime.errors import CONTRADICTIONS, Reason
from tandem.runtime.identifiers import Age

RULES = {
    "R1": "own rows and the decision are committed apart",
    "R2": "a fence overwrites what was decided",
    "R3": "a driver whose COMMIT was not answered says aborted without reading the log",
    "R4": "Resolve doesn't look at who asks, nor for what content",
    "R4-fence": "Resolve says aborted of what is undecided, and writes nothing",
    "R6": "a vote counts whatever content it is for",
    "R9": "the sweeper discards what is old, without asking",
    "R10": "a reader takes prepared rows for nothing",
    "R14": "an id's age is not looked at",
    "names": "a transaction is known by its id alone, whatever its coordinator's name",
}
"""The rules that can be switched off, and what is done instead."""

LOG = UUID(int=0)

SETTLED = {Phase.COMMITTED, Phase.ABORTED, Phase.REUSED}


class Step(NamedTuple):
    """One thing that happens. told: to be shown. by_driver: needs a driver that lives. broken: a promise it breaks."""

    told: tuple[object, ...]
    world: World
    by_driver: bool = False
    broken: str = ""


class Steps:
    """The steps of a scenario. without: rules that are switched off."""

    def __init__(self, scenario: Scenario, without: frozenset[str]) -> None:
        self._s = scenario
        self._without = without
        self._bit = scenario.messages
        self._deciders = [
            Decided(Outcome.COMMITTED, driver.digests, tuple(driver.digests)) for driver in scenario.drivers
        ]
        self._unanimous = lru_cache(None)(self._count)
        self._answer: Callable[[int, int, str], Outcome] = lru_cache(None)(self._answer_for)

    def all(self, w: World) -> Iterator[Step]:
        """Everything that can happen in this world."""
        for d in range(len(self._s.drivers)):
            yield from self._driver(w, d)
        for place in range(len(self._s.places)):
            yield from self._participant(w, place)
        for t in range(self._s.transactions):
            yield from self._database(w, t)
        for t, p, content in self._s.asks(w.net):
            yield from self._resolve(w, t, p, content)
        for reader, (t, p) in enumerate(self._s.reads):
            yield from self._reader(w, reader, t, p)

    # --- the driver ---------------------------------------------------------------------------------------------------

    def _driver(self, w: World, d: int) -> Iterator[Step]:
        driver, phase, pending = self._s.drivers[d], w.drivers[d], w.pending
        t = driver.transaction
        if phase in SETTLED:
            return
        if phase is Phase.NEW:
            heard = frozenset((p, content) for t_, p, content in self._s.asks(w.net) if t_ == t)
            if self._unanimous(d, heard):
                yield self._becomes(w, d, Phase.PREPARED, "has every vote")
            if any(w.parts[self._place(t, p)][1:] not in ("", content) for p, content in driver.writes.items()):
                yield self._becomes(w, d, Phase.REUSED, "is told that the id is another's")
        if phase in (Phase.NEW, Phase.PREPARED) and driver.own_id:
            # Nobody else can decide this id, and its INSERT was not sent: it needs no reading (R3).
            yield self._aborts(w, d, "gives up before its INSERT")
        if phase is Phase.PREPARED:
            if "R1" in self._without and not w.own & 1 << d:
                yield Step(("driver", d, "commits its own rows"), w._replace(own=w.own | 1 << d), True)
            elif w.log[t] == NOTHING and pending[t] == -1 and Age.FINE in self._ages(w, t):
                after = self._phase(w, d, Phase.DECIDING)._replace(pending=put(pending, t, 2 * d))
                yield Step(("driver", d, "sends its own rows and the INSERT of the decision"), after, True)
            yield self._becomes(w, d, Phase.DECIDING, "sends its INSERT, which fails")
        if phase is Phase.DECIDING:
            if pending[t] == 2 * d:
                yield Step(("driver", d, "sends COMMIT"), w._replace(pending=put(pending, t, 2 * d + 1)), True)
            if w.fate[t] == d and w.own & 1 << d:
                yield self._commits(w, d, "is answered COMMIT")
            if "R3" in self._without:
                yield self._aborts(w, d, "hears no answer and takes it for aborted")
        if phase is Phase.NEW and driver.own_id:
            return
        yield from self._settles(w, d)

    def _settles(self, w: World, d: int) -> Iterator[Step]:
        """Reads the log, with a fence where it is undecided (R3)."""
        t = self._s.drivers[d].transaction
        for row, after, broken in self._fenced(w, t):
            if row is None:
                if w.drivers[d] is not Phase.UNKNOWN:
                    yield self._becomes(after, d, Phase.UNKNOWN, "can't have the log's answer: outcome unknown")
            elif row == ABORTED:
                yield self._aborts(after, d, "reads aborted in the log")._replace(broken=broken)
            elif self._deciders[row].participants == self._deciders[d].participants:
                yield self._commits(after, d, "reads committed in the log")
            else:
                yield self._becomes(after, d, Phase.REUSED, "reads that the id was committed with other content")

    def _fenced(self, w: World, t: int) -> Iterator[tuple[int | None, World, str]]:
        """(row, world, broken) of a look with fence: None where no answer can be had."""
        if w.pending[t] != -1:
            yield None, w, ""  # it waits for the INSERT of another, and its lock timeout strikes
            return
        if w.log[t] != NOTHING and not ("R2" in self._without and w.log[t] != ABORTED):
            yield w.log[t], w, ""
            return
        for age in self._ages(w, t):
            if age is Age.EXPIRED:
                yield None, w, ""
            else:
                after, broken = self._decided(w, t, ABORTED)
                yield ABORTED, after, broken

    def _commits(self, w: World, d: int, why: str) -> Step:
        driver = self._s.drivers[d]
        net = w.net
        for p in driver.writes:
            net |= self._bit["commit", driver.transaction, p]
        return Step(("driver", d, f"{why}: says committed"), self._phase(w, d, Phase.COMMITTED)._replace(net=net), True)

    def _aborts(self, w: World, d: int, why: str) -> Step:
        driver = self._s.drivers[d]
        net = w.net
        for p in driver.writes:
            net |= self._bit["abort", driver.transaction, p]
        return Step(("driver", d, f"{why}: says aborted"), self._phase(w, d, Phase.ABORTED)._replace(net=net), True)

    def _becomes(self, w: World, d: int, phase: Phase, why: str) -> Step:
        return Step(("driver", d, why), self._phase(w, d, phase), True)

    def _phase(self, w: World, d: int, phase: Phase) -> World:
        return w._replace(drivers=put(w.drivers, d, advance(w.drivers[d], phase)))

    def _count(self, d: int, heard: frozenset[tuple[int, str]]) -> bool:
        """Whether what was promised makes the tally unanimous."""
        asked = self._s.drivers[d].digests
        votes: dict[str, Vote] = {}
        for p, content in sorted(heard):
            known = asked.get(name(p))
            if known is not None and name(p) not in votes:
                votes[name(p)] = Vote(name(p), known if "R6" in self._without else content.encode())
            if known == content.encode():
                votes[name(p)] = Vote(name(p), content.encode())
        return tally(asked, votes).unanimous

    # --- participants -------------------------------------------------------------------------------------------------

    def _participant(self, w: World, place: int) -> Iterator[Step]:
        t, p = self._s.places[place]
        code, bit, ages = w.parts[place], self._bit, self._ages(w, t)
        for d, driver in enumerate(self._s.drivers):
            if driver.transaction != t or p not in driver.writes or not w.net & bit["prepare", d, p]:
                continue
            for age in ages:
                yield from self._prepare(w, place, d, age)
        for message, verdict_of in (("commit", on_commit), ("abort", on_abort)):
            if w.net & bit[message, t, p]:
                for age in ages:
                    yield from self._end(w, place, message, _verdict(verdict_of, code, age))
        if code[:1] == "p":
            if "R9" in self._without:
                yield Step(("part", place, "discards it, since it is old"), self._holds(w, place, "a"))
            if w.net & bit["expired", t, p] and not w.parked & 1 << place:
                yield Step(("part", place, "parks it for a person"), w._replace(parked=w.parked | 1 << place))
        if code[:1] in ("c", "a") and w.ages[t] == OLD:
            yield Step(("part", place, "purges it"), self._holds(w, place, ""))

    def _prepare(self, w: World, place: int, d: int, age: Age) -> Iterator[Step]:
        t, p = self._s.places[place]
        content = self._s.drivers[d].writes[p]
        verdict = _prepare_verdict(w.parts[place], age, content)
        if verdict is Act.STAGE:
            others = (self._place(other, p) for other in range(self._s.transactions) if other != t)
            if self._s.same_entity and any(w.parts[other][:1] in ("p", "c") for other in others):
                return  # a no vote, which nobody remembers
            after = self._holds(w, place, "p" + content)
            after = after._replace(net=after.net | self._bit["yes", t, p, content])
            yield Step(("part", place, f"receives Prepare of driver {d + 1}, stages {content}, votes yes"), after)
        elif verdict is Act.ANSWER_OK:
            after = w._replace(net=w.net | self._bit["yes", t, p, content])
            yield Step(("part", place, f"receives Prepare of driver {d + 1} again, votes yes"), after)

    def _end(self, w: World, place: int, message: str, verdict: Verdict) -> Iterator[Step]:
        told = ("part", place, f"receives {message.capitalize()}: {verdict.value}")
        if isinstance(verdict, Reason):
            if verdict in CONTRADICTIONS:
                yield Step(told, w, broken=f"a contradiction: {verdict.value}")
        elif verdict is Act.PUBLISH:
            t, p = self._s.places[place]
            after = self._holds(w, place, "c" + w.parts[place][1:])
            yield Step(told, after._replace(net=after.net | self._bit["ack", t, p]))
        elif verdict in (Act.DISCARD, Act.TOMBSTONE):
            yield Step(told, self._holds(w, place, "a"))

    def _holds(self, w: World, place: int, code: str) -> World:
        parked = w.parked if code[:1] == "p" else w.parked & ~(1 << place)
        return w._replace(parts=put(w.parts, place, code), parked=parked)

    # --- the initiator's database, and what runs beside it ------------------------------------------------------------

    def _database(self, w: World, t: int) -> Iterator[Step]:
        row, pending, bit = w.log[t], w.pending[t], self._bit
        if pending != -1:
            free = w._replace(pending=put(w.pending, t, -1))
            yield Step(("log", t, "the local transaction is rolled back"), free)
            if pending % 2:
                d = pending // 2
                after, broken = self._decided(free, t, d)
                undelivered = sum(1 << p for p in self._s.drivers[d].writes)
                after = after._replace(
                    own=after.own | 1 << d,
                    undelivered=put(after.undelivered, t, undelivered),
                )
                yield Step(("log", t, f"the local transaction of driver {d + 1} is committed"), after, broken=broken)
        if row >= 0:
            net, left = w.net, w.undelivered[t]
            for p in range(self._s.participants):
                if left & 1 << p:
                    net |= bit["commit", t, p]
                    if w.net & bit["ack", t, p]:
                        marked = w._replace(undelivered=put(w.undelivered, t, left & ~(1 << p)))
                        yield Step(("log", t, f"the acknowledgement of {name(p)} is marked"), marked)
            if net != w.net:
                yield Step(("log", t, "recovery sends Commit"), w._replace(net=net))
        if self._s.ages:
            if w.ages[t] < OLD:
                older = w._replace(ages=put(w.ages, t, w.ages[t] + 1))
                yield Step(("log", t, "its id grows older"), older)
            elif row != NOTHING and not w.undelivered[t]:
                yield Step(("log", t, "its decision is purged"), w._replace(log=put(w.log, t, NOTHING)))

    def _resolve(self, w: World, t: int, p: int, content: str) -> Iterator[Step]:
        """A question of this participant's sweeper, or of one that pushes, is answered: with fence."""
        bit = self._bit
        for row, after, broken in self._fenced(w, t):
            if "R4-fence" in self._without and w.log[t] == NOTHING:
                after, broken = w, ""
            if row is None:
                if w.pending[t] == -1:
                    net = w.net | bit["expired", t, p]
                    yield Step(("asks", p, t, content, "expired"), w._replace(net=net))
                continue
            answer = self._answer(row, p, content)
            net = after.net | bit["commit" if answer is Outcome.COMMITTED else "abort", t, p]
            yield Step(("asks", p, t, content, answer.value), after._replace(net=net), broken=broken)

    def _answer_for(self, row: int, p: int, content: str) -> Outcome:
        if row == ABORTED:
            return answer_for(Decided(Outcome.ABORTED), name(p), content.encode())
        if "R4" in self._without:
            return Outcome.COMMITTED
        return answer_for(self._deciders[row], name(p), content.encode())

    def _decided(self, w: World, t: int, row: int) -> tuple[World, str]:
        """The row is written; what was decided first stays its fate."""
        fate = w.fate[t]
        broken = "" if fate in (NOTHING, row) else "a transaction is decided twice, and differently"
        first = row if fate == NOTHING else fate
        return w._replace(log=put(w.log, t, row), fate=put(w.fate, t, first)), broken

    # --- a reader (R10) -----------------------------------------------------------------------------------------------

    def _reader(self, w: World, reader: int, t: int, p: int) -> Iterator[Step]:
        """Its look, its question, the answer, and what it makes of that, are four steps: anything may come between."""
        place = self._place(t, p)
        code, doing, known = w.parts[place], w.readers[reader][:-1], w.readers[reader][-1:]

        def step(told: str, then: str, *, broken: str = "") -> Step:
            return Step(("reader", reader, told), w._replace(readers=put(w.readers, reader, then)), broken=broken)

        missed = "a reader misses what was acknowledged before it began" if known == "1" else ""
        match doing:
            case "":
                yield step("begins to look", "look1" if self._acknowledged(w, t) else "look0")
            case "look":
                if code[:1] == "c":
                    yield step("finds it", "")
                elif code[:1] == "p" and "R10" not in self._without:
                    yield step("meets prepared rows", "ask" + known)
                elif code or w.ages[t] == FRESH:
                    yield step("finds nothing", "", broken=missed)
                else:
                    yield step("ends", "")  # purged here: the entity itself stays
            case "ask":
                yield step("can't be told: in doubt", "")
                if code[:1] != "p":
                    yield step("looks again", "look" + known)
                elif w.log[t] != NOTHING:
                    answer = self._answer(w.log[t], p, code[1:]).value
                    yield step(f"is answered {answer}", f"told {answer}" + known)
                elif Age.FINE in self._ages(w, t):  # a plain look, so that it waits for no INSERT that is pending
                    yield step("is answered undecided: finds nothing", "", broken=missed)
            case _:
                message, verdict_of = ("commit", on_commit) if doing == "told committed" else ("abort", on_abort)
                for age in self._ages(w, t):
                    verdict = _verdict(verdict_of, code, age)
                    for applied in self._end(w, place, message, verdict):
                        after = applied.world._replace(readers=put(w.readers, reader, "look" + known))
                        yield Step(("reader", reader, f"applies it: {verdict.value}"), after, broken=applied.broken)
                    if verdict is Act.ANSWER_OK or isinstance(verdict, Reason):
                        yield step(f"finds that it was applied: {verdict.value}", "look" + known)

    def _acknowledged(self, w: World, t: int) -> bool:
        return any(
            driver.transaction == t and w.drivers[d] is Phase.COMMITTED for d, driver in enumerate(self._s.drivers)
        )

    # --- shared -------------------------------------------------------------------------------------------------------

    def _ages(self, w: World, t: int) -> tuple[Age, ...]:
        """What an id's age can be taken for, by one clock or another."""
        if "R14" in self._without or w.ages[t] == FRESH:
            return (Age.FINE,)
        return (Age.FINE, Age.EXPIRED) if w.ages[t] == EXPIRING else (Age.EXPIRED,)

    def _place(self, t: int, p: int) -> int:
        return t * self._s.participants + p


_STATES = {"p": State.PREPARED, "c": State.COMMITTED, "a": State.ABORTED}


@lru_cache(None)
def _held(code: str) -> Held | None:
    return Held(_STATES[code[0]], LOG, code[1:].encode()) if code else None


@lru_cache(None)
def _verdict(of: Any, code: str, age: Age) -> Verdict:
    verdict: Verdict = of(_held(code), age)
    return verdict


@lru_cache(None)
def _prepare_verdict(code: str, age: Age, content: str) -> Verdict:
    return on_prepare(_held(code), age, log_id=LOG, digests=content.encode())
