"""kill -9 at random moments while signups of every kind run: of each PostgreSQL server, of both, of two processes.

Each moment is one at which something is in doubt, and there are as many as it takes to interrupt somebody.

The seed is printed; TANDEM_SEED sets it. TANDEM_FULL=1 kills more often.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest

from tests.faults.crash_house import ANYBODY, PATIENCE_S, Answer, House, Trial, eventually
from tests.faults.initiator import Kind

FULL = bool(os.environ.get("TANDEM_FULL"))
SEED = int(os.environ.get("TANDEM_SEED", random.randrange(1 << 32)))
ROUNDS = 3 if FULL else 1
MOST_ROUNDS = 12
"""A kill that nobody has noticed, since retries got over it, is followed by another."""

VICTIMS = [
    ("identity-pg",),
    ("profiles-pg",),
    ("identity-pg", "profiles-pg"),
    ("identity", "profiles"),
    ("initiator", "second"),
    ("profiles", "coordinator"),
]


@dataclass
class Load:
    """Signups of every kind with one and with two participants. Half of the clients repeat each until it is done; the
    others do not, and some of them have little patience with the participants."""

    house: House
    clients: int = 6
    stopping: bool = False
    made: list[tuple[Trial, bool, bool]] = field(default_factory=list)
    """Each trial, whether its client was told that it succeeded, and whether it went on until it was."""
    failed: int = 0
    """Calls that were not answered with success."""
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def told(self) -> int:
        """How many clients were told of success."""
        return sum(told for _, told, _ in self.made)

    def client(self, number: int) -> None:
        """Until told to stop."""
        repeats = number % 2 == 0
        for i in count(number):
            if self.stopping:
                break
            trial = Trial(self.house, list(Kind)[i % 3], 1 + (i + number // 3) % 2)
            answer = self.call(trial, impatient=number % 4 == 1)
            until = time.monotonic() + PATIENCE_S
            while not answer.ok and repeats and time.monotonic() < until:
                time.sleep(0.1)
                answer = self.call(trial)
            self.made.append((trial, answer.ok, repeats))
            if not answer.ok:
                time.sleep(0.05)

    def call(self, trial: Trial, *, impatient: bool = False) -> Answer:
        """One call of a client."""
        answer = trial.call(impatient=impatient)
        if not answer.ok:
            with self._counting:
                self.failed += 1
        return answer


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
def test_under_load(house: House, victims: Sequence[str]) -> None:
    """either PostgreSQL, any time | what was committed | as above | as above

    And two processes at once: kill -9 at a random moment at which something is prepared or undelivered, while signups
    of every kind run. It interrupts some of them, and a user exists if and only if its Person is active, and so on.
    """
    seed = SEED + VICTIMS.index(tuple(victims))
    print(f"seed {seed} (TANDEM_SEED={SEED})")
    chance = random.Random(seed)
    since = Trial(house, Kind.BOTH, 2).since
    load = Load(house)
    clients = [house.calling(partial(load.client, number)) for number in range(load.clients)]

    def interrupted() -> bool:
        enders = {by for story in house.stories(since).values() for by in story.by}
        return load.failed > 0 or bool(enders & ANYBODY - {"coordinator"})

    for number in range(MOST_ROUNDS):
        if number >= ROUNDS and interrupted():
            break
        time.sleep(chance.uniform(0.2, 1.0))
        eventually(lambda: house.unfinished(since), "something is prepared or undelivered")
        with ExitStack() as down:
            for name in victims:
                if name in house.servers:
                    down.enter_context(house.down(name))
                else:
                    os.kill(house.services[name].pid, signal.SIGKILL)
            time.sleep(chance.uniform(0.7, 1.2))  # longer than some clients have patience
        for name in chance.sample(list(victims), len(victims)):
            if name in house.services:
                house.restart(house.services[name])
        time.sleep(chance.uniform(0.1, 0.3))
        house.make_due()
    told = load.told
    eventually(lambda: load.told > told + load.clients, "signups go on after it")
    load.stopping = True
    while not all(client.done() for client in clients):
        house.make_due()  # or they would wait for push_after
        time.sleep(0.2)
    for client in clients:
        client.result()
    house.settled(since)
    assert house.split(since) == []
    enders = Counter(by for story in house.stories(since).values() for by in story.by)
    print(f"{load.failed} calls failed; ended by {dict(enders)}")
    assert enders.keys() <= ANYBODY
    assert interrupted(), f"nobody was, by {number} kills"
    outcomes: Counter[str] = Counter()
    for trial, told_of, repeats in load.made:
        there = trial.own_rows() > 0
        outcomes[f"{'exists' if there else 'does not'}, {'told' if told_of else 'not told'}"] += 1
        assert there or not told_of, "its client was told that it exists"
        assert told_of or not repeats, "repeated until it was done"
        if there:
            trial.exists(read=False)
        else:
            trial.exists_not()
    print(dict(outcomes))
