"""A business's facts, for clients that do not call profiles yet: read and changed over there, whether it is migrated or
not.

    read     profiles first; what it does not have is told from identity's own old columns, with version 0
    change   through to profiles, by the version that was read; version 0 migrates the one account first, where this
             design makes both sides together; elsewhere it is refused until a backfill has been there

A prepared profile that is undecided is not there yet (R10), so the old columns speak until the moment of the commit,
and profiles from then on. Both say the same: the mapping is the backfill's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import UUID

import grpc
import sqlalchemy as sa
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy.engine import Connection, Engine

from identity_stub import tables as t
from identity_stub import users
from identity_stub.migration.mapping import Refusal, business_of, checked
from identity_stub.provisioning import ProfileExists, Provisioning
from tandem.profiles import ids as profile_ids
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import business_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.runtime.database import ASIDE
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.status import from_rpc_error

ASK_S = 3.0
"""For one answer of profiles."""

_ADDRESS = ("street", "city", "region", "postal_code", "country")
_REGISTRATION = ("registration_country", "registration_number")
_TOGETHER = {**dict.fromkeys(_REGISTRATION, _REGISTRATION), "country": _ADDRESS, "city": _ADDRESS}
"""Old columns that say nothing without each other: where one can't be read, all are left out."""

_COLUMNS = {"incorporation_date": ("incorporated",), "addresses": _ADDRESS}
"""The old columns that a field of the profile is made of, where they have other names."""
_FIELDS = {column: field for field, columns in _COLUMNS.items() for column in columns}


@dataclass(frozen=True, slots=True)
class Told:
    """An account and its facts. repr leaves the facts out: it may be logged."""

    account: users.Business
    profile: business_pb2.Business

    def __repr__(self) -> str:
        return f"Told({self.account!r}, version {self.profile.version})"


class Facts:
    """Reads and changes facts. provisioning: how an account gets its profile. target: where profiles is found."""

    def __init__(self, engine: Engine, provisioning: Provisioning, target: str) -> None:
        self._engine = engine
        self._provisioning = provisioning
        self._channel = open_profiles(target)
        self._stub = profiles_service_pb2_grpc.ProfilesServiceStub(self._channel)

    def business(self, business_id: UUID, *, timeout_s: float) -> Told | None:
        """The business with its facts; None where there is no such account. Raises TandemError, as profiles does."""
        known = self._account(business_id)
        if known is None:
            return None
        account, row = known
        profile = self._ask(business_id, timeout_s)
        if profile is None:
            return Told(account, _readable(row, account.members))
        if account.profile_status != users.ACTIVE:  # it has got its profile since: both halves shall say so
            account, _ = self._account(business_id) or known
        return Told(account, profile)

    def update(
        self, business_id: UUID, new: business_pb2.Business, paths: Sequence[str], *, timeout_s: float
    ) -> Told | None:
        """The business after its fields `paths` were set to those of `new`, whose version is the one that was read.

        Raises InvalidRequest (fields begin with `profile` or `update_mask`), VERSION_MISMATCH (metadata:
        current_version), HELD, ALREADY_EXISTS for a registration that is taken. After UNAVAILABLE it may have been
        made.
        """
        known = self._account(business_id)
        if known is None:
            return None
        account, row = known
        version = new.version or self._migrated(account, row, new, paths, timeout_s)
        profile = business_pb2.Business()
        profile.CopyFrom(new)
        profile.business_id = str(profile_ids.business_id(business_id))
        profile.version = version
        try:
            changed = self._stub.UpdateBusiness(
                pb.UpdateBusinessRequest(business=profile, update_mask=FieldMask(paths=paths)),
                timeout=min(ASK_S, timeout_s),
            ).business
        except grpc.RpcError as error:
            told = from_rpc_error(error)
            if told.reason is Reason.NOT_FOUND:  # lost over there: what identity has is version 0
                raise _changed_meanwhile(0) from None
            raise _of_request(told) from None
        account, _ = self._account(business_id) or known
        return Told(account, changed)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def _account(self, business_id: UUID) -> tuple[users.Business, sa.Row[Any]] | None:
        with local_transaction(self._engine, ASIDE) as connection:
            account = users.business(connection, business_id)
            return None if account is None else (account, _row(connection, business_id))

    def _ask(self, business_id: UUID, timeout_s: float) -> business_pb2.Business | None:
        """What profiles has; None where it has nothing that is committed."""
        asked = pb.GetBusinessRequest(business_id=str(profile_ids.business_id(business_id)))
        try:
            profile: business_pb2.Business = self._stub.GetBusiness(asked, timeout=min(ASK_S, timeout_s)).business
        except grpc.RpcError as error:
            told = from_rpc_error(error)
            if told.reason is Reason.NOT_FOUND:
                return None
            raise told from None
        return profile

    def _migrated(
        self,
        account: users.Business,
        row: sa.Row[Any],
        new: business_pb2.Business,
        paths: Sequence[str],
        timeout_s: float,
    ) -> int:
        """Makes the profile of the old columns, as the backfill would; its version. The client has read them."""
        if self._provisioning.profile_status != users.ACTIVE:
            self._refused(account, timeout_s)
        profile = _to_create(row, account.members, new, paths)

        def own_rows(connection: Connection, _: UUID | None) -> None:
            mark_active(connection, account.business_id)

        try:
            self._provisioning.create({"profile": profile}, own_rows)
        except ProfileExists as error:
            if error.field != "business_id":
                raise TandemError(
                    "there is one with this registration_number already",
                    reason=Reason.ALREADY_EXISTS,
                    metadata={"field": "registration_number"},
                ) from error
            return self._same(account.business_id, profile, timeout_s)
        return 1

    def _refused(self, account: users.Business, timeout_s: float) -> NoReturn:
        """Why version 0 can't be changed where accounts come before their profiles."""
        found = self._ask(account.business_id, timeout_s)
        if found is not None:
            raise _changed_meanwhile(found.version)
        if account.profile_status == users.PENDING:
            raise TandemError("its profile is on its way", reason=Reason.IN_PROGRESS, retry_after_s=1)
        refuse_migration("business_id")

    def _same(self, business_id: UUID, expected: business_pb2.Business, timeout_s: float) -> int:
        """The version that profiles has, if it says what the client has read here: a backfill was quicker."""
        found = self._ask(business_id, timeout_s)
        if found is None:
            raise _changed_meanwhile(0)
        version = found.version
        for one in (found, expected):
            one.ClearField("people")
            one.ClearField("version")
        if found != expected:
            raise _changed_meanwhile(version)
        return version


def refuse_migration(field: str) -> NoReturn:
    """Where accounts come before their profiles, only a backfill migrates an old one: no other local commit can say
    that it has its profile. field: of the request, the one that names the business. Raises REFUSED.
    """
    raise TandemError(
        "the business has no profile: a backfill must give it one first",
        reason=Reason.REFUSED,
        metadata={"field": field, "why": "business"},
    )


def of_old_columns(connection: Connection, business_id: UUID) -> business_pb2.Business:
    """The profile that migrates an account that is there, with its people.

    Raises InvalidRequest where its old columns make none.
    """
    account = users.business(connection, business_id)
    assert account is not None
    return _to_create(_row(connection, business_id), account.members, business_pb2.Business(), ())


def mark_active(connection: Connection, business_id: UUID) -> None:
    """Says that the business has its profile; in the local transaction that decides it."""
    b = t.businesses
    statement = (
        sa.update(b).where(b.c.business_id == business_id).values(profile_status=users.ACTIVE, profile_reason=None)
    )
    if connection.execute(statement).rowcount != 1:
        raise TandemError("there is no such business", reason=Reason.NOT_FOUND)


# --- the old columns --------------------------------------------------------------------------------------------


def _row(connection: Connection, business_id: UUID) -> sa.Row[Any]:
    b = t.businesses.c
    old = [b[f"old_{fact}"] for fact in t.OLD_BUSINESS_FACTS]
    return connection.execute(sa.select(b.business_id, *old).where(b.business_id == business_id)).one()


def _people(members: Iterable[users.Member]) -> list[tuple[UUID, str]]:
    return [(member.user_id, member.role) for member in members]


def _readable(row: sa.Row[Any], members: Sequence[users.Member]) -> business_pb2.Business:
    """What the old columns say, without what can't be read: what is malformed waits for somebody to mend it."""
    columns = dict(row._mapping)
    nameless = not (columns["old_legal_name"] or "").strip()
    if nameless:
        columns["old_legal_name"] = "?"
    people = _people(members)
    made = business_of(SimpleNamespace(**columns), people)
    while isinstance(made, Refusal):
        for violation in made.violations:
            if violation.field == "people":
                people = []
            for column in _TOGETHER.get(violation.field, (violation.field,)):
                columns[f"old_{column}"] = None
        made = business_of(SimpleNamespace(**columns), people)
    if nameless:
        made.legal_name = ""
    return made


def _to_create(
    row: sa.Row[Any], members: Sequence[users.Member], new: business_pb2.Business, paths: Sequence[str]
) -> business_pb2.Business:
    """The profile that the old columns make. Those that the change replaces need not make sense."""
    people = _people(members)
    made = checked(business_of(row, people))
    if isinstance(made, Refusal):
        columns = dict(row._mapping)
        for path in paths:
            for column in _COLUMNS.get(path, (path,)):
                columns[f"old_{column}"] = new.legal_name if path == "legal_name" else None
        made = business_of(SimpleNamespace(**columns), people)
    if isinstance(made, Refusal):
        raise InvalidRequest(
            [
                Violation(f"profile.{_FIELDS.get(v.field, v.field)}", f"can't stay as it is: {v.description}", v.rule)
                for v in made.violations
            ]
        )
    assert isinstance(made, business_pb2.Business)
    return made


# --- errors -----------------------------------------------------------------------------------------------------


def _changed_meanwhile(version: int) -> TandemError:
    return TandemError(
        "the business was changed meanwhile: read it again",
        reason=Reason.VERSION_MISMATCH,
        metadata={"current_version": str(version)},
    )


def _of_request(error: TandemError) -> TandemError:
    """What profiles says of its request, in the words of ours: its `business` is our `profile`."""
    if not isinstance(error, InvalidRequest):
        return error
    return InvalidRequest(
        [
            Violation(
                f"profile.{v.field.removeprefix('business.')}" if v.field.startswith("business.") else v.field,
                v.description,
                v.rule,
            )
            for v in error.violations
        ]
    )
