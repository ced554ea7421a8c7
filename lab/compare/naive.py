"""The control: naive dual write. Two create calls to profiles, then a local insert, and between them nothing but hope.

Run as identity in its place: `python -m lab.compare.naive`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy.engine import Engine

import identity_stub.app
from identity_stub import users
from identity_stub.cli import cli
from identity_stub.config import PROFILES, Settings
from identity_stub.provisioning import OwnRows, OwnRowsOfMany, ProfileExists
from identity_stub.provisioning.update_or_create import UpdateOrCreate
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction

T = TypeVar("T")


class DualWrite(UpdateOrCreate):
    """Creates the person and the business, and then the accounts."""

    profile_status = users.ACTIVE

    def create(self, profile: Mapping[str, Message], own_rows: OwnRows[T]) -> T:
        """See `Provisioning.create`. Where one of the calls has failed, the other one's entity stays."""
        (standing,) = self._update([profile])
        for status, reason in standing.values():
            if reason == Reason.ALREADY_EXISTS:
                raise ProfileExists("registration_number", transaction_id=None)
            if status != users.ACTIVE:
                raise TandemError("profiles did not create it", reason=Reason(reason), retry_after_s=1.0)
        failpoint("dual_write.after_profiles")
        with local_transaction(self._engine) as connection:
            return own_rows(connection, None)

    def create_many(
        self, profiles: Sequence[Mapping[str, Message]], own_rows: OwnRowsOfMany[T]
    ) -> list[T | TandemError]:
        """Nobody compares it."""
        raise NotImplementedError


def _dual_write(settings: Settings, engine: Engine, coordinator: object) -> DualWrite:
    return DualWrite(engine, settings.participants[PROFILES])


if __name__ == "__main__":
    vars(identity_stub.app)["_provisioning"] = _dual_write
    cli(prog_name="python -m lab.compare.naive")
