"""One grep over the logs of all processes, by a transaction's name, tells its story in order, and nobody's name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.faults.crash_house import ABORTED, COMMITTED, COORDINATOR, House, built
from tests.faults.initiator import Kind

PROCESSES = {"profiles": "PROFILES", "second": "PROFILES", "coordinator": "COORDINATOR", "identity": "IDENTITY"}


@pytest.fixture(scope="module")
def town() -> Iterator[House]:
    """The house, telling everything."""
    with built() as house:
        for name, prefix in PROCESSES.items():
            service = house.services[name]
            told = {f"{prefix}_LOG_LEVEL": "DEBUG", f"{prefix}_LOG_JSON": "true"}
            service.environment = {**service.environment, **told}
            house.restart(service)
        yield house


def told(house: House, name: str) -> list[dict[str, Any]]:
    """Every line that names the transaction, in the order of their times."""
    lines = [
        json.loads(line)
        for process in PROCESSES
        for line in house.services[process].log.read_text().splitlines()
        if name in line
    ]
    assert {line["transaction"] for line in lines} <= {name}
    return sorted(lines, key=lambda line: str(line["timestamp"]))


def story(house: House, name: str) -> list[tuple[str, ...]]:
    """Who said what, with what it was about."""
    about = ("vote", "outcome", "answer", "by", "participant")
    return [
        (line["service"], line["event"], *(f"{word}={line[word]}" for word in about if word in line))
        for line in told(house, name)
    ]


def signed_up(house: House, token: str) -> None:
    assert house.sign_up(token, Kind.PERSON).ok


def since_now() -> UUID:
    time.sleep(0.002)
    return UUID(int=time.time_ns() // 1_000_000 << 80)


def the_one(house: House, since: UUID) -> str:
    """The name of the only transaction since."""
    (id_,) = house.stories(since)
    return f"{COORDINATOR}/{id_}"


def silent_about(house: House, token: str) -> None:
    """No log has the canary: it was the name, the e-mail address and the request's id."""
    for process in PROCESSES:
        assert token not in house.services[process].log.read_text()


BEGUN = [("identity", "preparing"), ("profiles", "voted", "vote=yes")]


def test_an_ordinary_signup(house: House) -> None:
    """Each step, by whom; all of it at DEBUG, since it is what happens a thousand times a second."""
    since, token = since_now(), f"canary{uuid4().hex[:12]}"
    signed_up(house, token)
    name = the_one(house, since)
    assert story(house, name) == [
        *BEGUN,
        ("identity", "ended", "outcome=committed"),
        ("profiles", "committed", "by=coordinator"),
        ("identity", "delivered", "participant=profiles"),
    ]
    assert {line["level"] for line in told(house, name)} == {"debug"}
    silent_about(house, token)


def test_a_refused_signup(house: House) -> None:
    """Who said no, and why."""
    token = f"canary{uuid4().hex[:12]}"
    house.initiate(token, Kind.BUSINESS, ["profiles"])
    since = since_now()
    answer = house.sign_up(token, Kind.BUSINESS)
    assert not answer.ok
    name = the_one(house, since)
    assert story(house, name) == [
        ("identity", "preparing"),
        ("profiles", "voted", "vote=no"),
        ("identity", "ended", "outcome=aborted"),
    ]
    assert [line.get("reason") for line in told(house, name)] == [None, "ALREADY_EXISTS", None]
    assert told(house, name)[-1]["told"] == "ALREADY_EXISTS"
    silent_about(house, token)


def test_a_signup_whose_initiator_dies_undecided(house: House) -> None:
    """Killed after the votes: the sweeper claims it, the coordinator is asked and fences it, it is discarded. What is
    unusual can be read at INFO."""
    since, token = since_now(), f"canary{uuid4().hex[:12]}"
    identity = house.services["identity"]
    house.arm(identity, "driver.after_votes")
    assert not house.sign_up(token, Kind.PERSON).ok
    house.died_at_it(identity)
    house.restart(identity)
    house.make_due("profiles")
    house.settled(since)
    name = the_one(house, since)
    assert story(house, name) == [
        *BEGUN,
        ("profiles", "sweeping"),
        ("coordinator", "asked", "answer=aborted", "by=profiles"),
        ("profiles", ABORTED, "by=sweeper"),
    ]
    assert [line["event"] for line in told(house, name) if line["level"] == "info"] == ["asked", ABORTED]
    silent_about(house, token)


def test_a_signup_whose_initiator_dies_decided(house: House) -> None:
    """Killed after its local commit: recovery brings it."""
    since, token = since_now(), f"canary{uuid4().hex[:12]}"
    identity = house.services["identity"]
    house.arm(identity, "driver.after_local_commit")
    assert not house.sign_up(token, Kind.PERSON).ok
    house.died_at_it(identity)
    house.restart(identity)
    house.settled(since)
    name = the_one(house, since)
    assert story(house, name) == [
        *BEGUN,
        ("coordinator", "recovering"),
        ("profiles", COMMITTED, "by=recovery"),
        ("coordinator", "delivered", "participant=profiles"),
    ]
    assert [line["event"] for line in told(house, name) if line["level"] == "info"] == [COMMITTED, "delivered"]
    silent_about(house, token)
