"""The control group: the code that everybody writes first. A create RPC to profiles, then a local insert, no protocol.

Run as identity in its place: `python -m lab.torture.naive_identity`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

from google.protobuf.message import Message
from uuid_utils.compat import uuid7

import identity_stub.app
from identity_stub.cli import cli
from identity_stub.provisioning import OwnRows, ProfileExists
from identity_stub.users import ACTIVE
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.handle import packed
from tandem.coordinator.participants import Preparing
from tandem.runtime.errors import Reason
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.v1 import transaction_pb2

T = TypeVar("T")
CALL_S = 2.0


class DualWrite:
    """Creates the profile, which is at once active, and then the user."""

    profile_status = ACTIVE

    def __init__(self, coordinator: Coordinator, *, participant: str = "profiles", confirm: str = "wait") -> None:
        self._coordinator = coordinator
        self._participant = participant

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """See `Provisioning.create`; between the two writes there is nothing but hope."""
        key = TransactionKey(self._coordinator.name, uuid7())
        self._create_profile(key, list(profile.values()))
        with local_transaction(self._coordinator.engine) as connection:
            return own_rows(connection, key.transaction_id)

    def _create_profile(self, key: TransactionKey, entities: list[Message]) -> None:
        times, participants = self._coordinator.times, self._coordinator.participants
        until = time.monotonic() + CALL_S
        writes = packed({self._participant: entities})[self._participant]
        asked = Preparing(key, self._coordinator.log.log_id(), times.ttl_s, times.driver_deadline_s, writes)
        (vote,) = participants.prepare({self._participant: [asked]}, until=until)[self._participant]
        if vote.error is not None:
            if vote.error.reason is Reason.ALREADY_EXISTS:
                raise ProfileExists(vote.error.metadata.get("field", "id"), transaction_id=key.transaction_id)
            raise vote.error
        (error,) = participants.commit(
            {self._participant: [key]}, by=transaction_pb2.RESOLVED_BY_COORDINATOR, until=until
        )[self._participant]
        if error is not None:
            raise error

    def close(self) -> None:
        """Closes the channels."""
        self._coordinator.close()


if __name__ == "__main__":
    vars(identity_stub.app)["TwoPhase"] = DualWrite
    cli(prog_name="python -m lab.torture.naive_identity")
