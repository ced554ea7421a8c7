"""Signups: the product's, waiting or in the background, many at a time; and dual write, which is no protocol.

A signup is one user in the initiator's database and one Person in profiles'.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID, uuid4

import sqlalchemy as sa
from uuid_utils.compat import uuid7

from lab import processes
from lab.bench.house import House, people, users
from tandem.coordinator.driver import Confirm
from tandem.coordinator.handle import packed
from tandem.coordinator.participants import Preparing
from tandem.profiles.v1 import person_pb2, profiles_service_pb2, profiles_service_pb2_grpc
from tandem.runtime.channel import open_channel
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.wire import key_to
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc, transaction_pb2

SignUp = Callable[[], object]
CALL_S = 10.0
DELIVERED_S = 60.0


class Crowd:
    """People for many threads."""

    def __init__(self) -> None:
        self._people = people()
        self._lock = threading.Lock()

    def __call__(self) -> tuple[UUID, str, person_pb2.Person]:
        """The next one."""
        with self._lock:
            return next(self._people)


def two_phase(house: House, confirm: Confirm, participants: Sequence[str] = ("profiles",)) -> SignUp:
    """The product's."""
    coordinator, crowd, insert = house.coordinator, Crowd(), sa.insert(users)

    def sign_up() -> None:
        user_id, email, person = crowd()
        with coordinator.transaction({name: [person] for name in participants}, confirm=confirm) as tx:
            tx.connection.execute(insert, {"user_id": user_id, "email": email})

    return sign_up


def bulk(house: House, size: int) -> SignUp:
    """The product's, so many with one local commit."""
    coordinator, crowd, insert = house.coordinator, Crowd(), sa.insert(users)

    def sign_up() -> None:
        some = [crowd() for _ in range(size)]
        with coordinator.transactions([{"profiles": [person]} for _, _, person in some]) as batch:
            batch.connection.execute(insert, [{"user_id": user_id, "email": email} for user_id, email, _ in some])
        assert not batch.refused

    return sign_up


def dual_write(house: House) -> SignUp:
    """What everybody writes first: a create call, then a local insert, and between the two nothing but hope."""
    stub = participant_pb2_grpc.ParticipantServiceStub(open_channel(house.naive))
    crowd, insert, log_id = Crowd(), sa.insert(users), uuid4()

    def sign_up() -> None:
        user_id, email, person = crowd()
        writes = packed({"profiles": [person]})["profiles"]
        stub.Prepare(
            Preparing(TransactionKey("identity", uuid7()), log_id, 60.0, 7.0, writes).request(), timeout=CALL_S
        )
        with house.engine.begin() as connection:
            connection.execute(insert, {"user_id": user_id, "email": email})

    return sign_up


def prepare_and_commit(house: House) -> SignUp:
    """The participant's part alone, by single calls: Prepare, then Commit."""
    stub = participant_pb2_grpc.ParticipantServiceStub(open_channel(house.targets))
    crowd, log_id = Crowd(), uuid4()

    def both() -> None:
        key = TransactionKey("identity", uuid7())
        writes = packed({"profiles": [crowd()[2]]})["profiles"]
        stub.Prepare(Preparing(key, log_id, 60.0, 7.0, writes).request(), timeout=CALL_S)
        stub.Commit(
            pb.CommitRequest(key=key_to(key), resolved_by=transaction_pb2.RESOLVED_BY_COORDINATOR), timeout=CALL_S
        )

    return both


def latencies_ms(sign_up: SignUp, count: int) -> list[float]:
    """One after the other."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        sign_up()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def per_second(
    sign_up: SignUp, threads: int, seconds: float, *, until_done: Callable[[], object] = lambda: None
) -> float:
    """By so many threads at once. until_done: what has to be over before the clock is stopped."""
    return load(sign_up, threads, seconds, until_done=until_done)[0]


def load(
    sign_up: SignUp, threads: int, seconds: float, *, until_done: Callable[[], object] = lambda: None
) -> tuple[float, list[float]]:
    """By so many threads at once: how many a second, and how long each took in ms."""
    stopping, failures = threading.Event(), []
    took: list[list[float]] = [[] for _ in range(threads)]

    def run(mine: list[float]) -> None:
        try:
            while not stopping.is_set():
                began = time.perf_counter()
                sign_up()
                mine.append(1e3 * (time.perf_counter() - began))
        except BaseException as error:
            failures.append(error)
            stopping.set()

    workers = [threading.Thread(target=run, args=(mine,)) for mine in took]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    stopping.wait(seconds)
    stopping.set()
    for worker in workers:
        worker.join()
    until_done()
    elapsed = time.perf_counter() - began
    if failures:
        raise failures[0]
    return sum(map(len, took)) / elapsed, [one for mine in took for one in mine]


def delivered(house: House) -> Callable[[], None]:
    """Waits until nothing is prepared any more: what the background has left to do belongs to the signup."""

    def wait() -> None:
        statement = sa.text("SELECT count(*) FROM twophase.prepared_transaction WHERE NOT confirmed")

        def none_left() -> bool:
            with house.profiles_engine.connect() as connection:
                return bool(connection.execute(statement).scalar_one() == 0)

        assert processes.wait_until(none_left, timeout_s=DELIVERED_S, every_s=0.005)

    return wait


def empty(house: House) -> None:
    """Tables as they were in the beginning, once nothing is left to be delivered."""
    delivered(house)()
    with house.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE users, twophase.decision")
    with house.profiles_engine.begin() as connection:
        connection.exec_driver_sql(
            "LOCK TABLE twophase.prepared_transaction, profiles.person, profiles.audit_event;"
            "ALTER TABLE profiles.audit_event DISABLE TRIGGER append_only;"
            "TRUNCATE twophase.prepared_transaction, profiles.person, profiles.audit_event;"
            "ALTER TABLE profiles.audit_event ENABLE TRIGGER append_only"
        )


def read_person(house: House) -> SignUp:
    """GetPerson of people who were signed up before."""
    stub = profiles_service_pb2_grpc.ProfilesServiceStub(open_channel(house.targets))
    crowd, insert = Crowd(), sa.insert(users)
    ids: list[str] = []
    some = [crowd() for _ in range(1_000)]
    with house.coordinator.transactions([{"profiles": [person]} for _, _, person in some]) as batch:
        batch.connection.execute(insert, [{"user_id": user_id, "email": email} for user_id, email, _ in some])
    ids += [person.person_id for _, _, person in some]
    chance = random.Random(1)

    def read() -> None:
        stub.GetPerson(profiles_service_pb2.GetPersonRequest(person_id=chance.choice(ids)), timeout=CALL_S)

    return read
