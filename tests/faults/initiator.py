"""An initiator of the tests' own, as a process: `python -m tests.faults.initiator`, asked by XML-RPC.

A driver over one table of its own and any participants, so that the driver's failpoints fire in a process of their own.
"""

from __future__ import annotations

import json
import os
import socketserver
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from uuid import UUID, uuid5
from xmlrpc.server import SimpleXMLRPCServer

import sqlalchemy as sa
from google.protobuf.message import Message

from tandem.coordinator.driver import Coordinator
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.database import create_engine, explained
from tandem.runtime.failpoints import failpoint
from tandem.runtime.telemetry import configure_logging, logger
from tandem.runtime.times import Times

log = logger("tests.initiator")

PREFIX = "INITIATOR_"
TIMES = Times(prepare_deadline_s=10.0, block_timeout_s=8.0, push_after_s=20.0, ttl_s=30.0)
"""Enough time for a vote to be had from a participant that was killed and started again at once."""

IMPATIENT = replace(TIMES, prepare_deadline_s=0.6)
"""Not enough for that."""

own = sa.Table("own", sa.MetaData(), sa.Column("token", sa.Text, primary_key=True))
"""The initiator's own rows."""

_NAMES = UUID("5c1d9d2e-9a55-4a1f-8f7e-0d4f2a3b6c81")


class Kind(StrEnum):
    """What a transaction writes at each of its participants."""

    PERSON = "person"
    BUSINESS = "business"
    BOTH = "both"

    @property
    def has_person(self) -> bool:
        return self is not Kind.BUSINESS

    @property
    def has_business(self) -> bool:
        return self is not Kind.PERSON


def person_of(token: str) -> person_pb2.Person:
    """A person who is called `token`."""
    return person_pb2.Person(
        person_id=str(uuid5(_NAMES, token)), name=person_pb2.PersonName(display_name=token), nationalities=["NO"]
    )


def business_of(token: str) -> business_pb2.Business:
    """A business that is called `token`, with an owner."""
    return business_pb2.Business(
        business_id=str(uuid5(_NAMES, f"{token} business")),
        legal_name=token,
        entity_type=business_pb2.ENTITY_TYPE_CORPORATION,
        registration_country="NO",
        registration_number=token.upper(),
        people=[business_pb2.BusinessRole(person_id=str(uuid5(_NAMES, token)), role=business_pb2.ROLE_OWNER)],
    )


def writes(kind: Kind, token: str) -> list[Message]:
    """What each participant is asked to stage; the same for the same token."""
    made: list[Message] = []
    if kind.has_person:
        made.append(person_of(token))
    if kind.has_business:
        made.append(business_of(token))
    return made


class Initiator:
    """What a test can ask for. Answers are "", or the name of what was raised and why."""

    def __init__(self, coordinator: Coordinator, impatient: Coordinator) -> None:
        self._coordinator = coordinator
        self._impatient = impatient

    def run(self, token: str, kind: str, participants: Sequence[str], impatient: bool) -> str:
        """A whole transaction, the `with` block. One that has succeeded before is answered at once."""
        coordinator = self._impatient if impatient else self._coordinator
        try:
            with coordinator.engine.connect() as connection:
                if connection.execute(sa.select(own).where(own.c.token == token)).first():
                    return ""
            branches = {name: writes(Kind(kind), token) for name in participants}
            with coordinator.transaction(branches) as tx:
                tx.connection.execute(sa.insert(own).values(token=token))
        except Exception as error:
            return _told(error)
        return ""

    def leave(self, token: str, kind: str, participants: Sequence[str], decided: bool) -> str:
        """Prepares, perhaps decides, and leaves it at that: what is in doubt then, nobody has died for."""
        try:
            tx = self._coordinator.prepare({name: writes(Kind(kind), token) for name in participants})
            if decided:
                assert tx.decision is not None
                with self._coordinator.engine.begin() as connection:
                    connection.execute(sa.insert(own).values(token=token))
                    connection.execute(tx.decision)
        except Exception as error:
            return _told(error)
        return ""


def _told(error: Exception) -> str:
    known = explained(error)
    return f"{type(error).__name__}: {known.reason}: {known.message}"


class _Server(socketserver.ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True


def main() -> None:
    """Serves until it is ended."""
    configure_logging("initiator", level="INFO", json=False)
    settings = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
    targets = json.loads(settings["PARTICIPANTS"])
    engine = create_engine(settings["DATABASE_URL"], pool_size=16, name="initiator")
    drivers = [Coordinator(engine, name="identity", participants=targets, times=times) for times in (TIMES, IMPATIENT)]
    host, _, port = settings["LISTEN"].rpartition(":")
    server = _Server((host, int(port)), logRequests=False, allow_none=True)
    server.register_instance(Initiator(*drivers))
    if failpoint.armed:
        log.warning("failpoints are armed", failpoints=sorted(failpoint.armed))
    print(f"ready initiator {settings['LISTEN']} metrics=none", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
