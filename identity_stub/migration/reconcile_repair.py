"""What a reconciliation puts right where it is asked to. Each deed is guarded by what both sides say when it is done.

missing     made again from the old columns, each by a transaction of its own, many with one local commit; what signed
            up when there were profiles has no facts here: it is listed for whoever has a backup
different   by the policy of conflicts.py, by the version that was read; a status that is behind is brought up to date

What is extra, and transactions, are never touched here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.engine import Connection, Engine

from identity_stub.migration import backfill_accounts, mapping
from identity_stub.migration.backfill_accounts import Kind, Profile
from identity_stub.migration.conflicts import Existing, Policy, to_write
from identity_stub.migration.mapping import Refusal
from identity_stub.migration.reconcile_accounts import ROLES, STATUS, Account, read
from identity_stub.migration.reconcile_report import Difference
from identity_stub.migration.reconcile_report import Kind as Is
from identity_stub.provisioning import ProfileExists, Provisioning
from identity_stub.signup import TROUBLE, role_to
from identity_stub.users import ACTIVE
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2
from tandem.runtime.database import explained
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction

BATCH = 100
"""Transactions with one local commit."""

PATIENCE_S = 30.0
"""How long one batch is tried: above push_after, when what an earlier attempt has left gives way (R10)."""

PAUSE_S = 1.0

NO_FACTS = "no facts here"


class Repair:
    """Puts right what can be. policy: for facts that differ; None leaves them."""

    def __init__(self, engine: Engine, provisioning: Provisioning, existing: Existing, policy: Policy | None) -> None:
        self._engine = engine
        self._provisioning = provisioning
        self._existing = existing
        self._policy = policy

    def accounts(self, kind: Kind, differences: Sequence[Difference]) -> list[Difference]:
        """The same differences, with what became of each."""
        deeds: list[tuple[Callable[[Difference], bool], Callable[[Kind, list[Difference]], list[Difference]]]] = [
            (lambda one: one.what == kind.name and one.kind is Is.MISSING, self._missing),
            (lambda one: one.what == ROLES and one.kind is Is.MISSING, self._roles),
            (lambda one: one.what == kind.name and one.fields == (STATUS,), self._status),
            (lambda one: one.what == kind.name and one.kind is Is.DIFFERENT and one.fields != (STATUS,), self._facts),
        ]
        done: list[Difference] = []
        left = list(differences)
        for concerns, deed in deeds:
            mine, left = [one for one in left if concerns(one)], [one for one in left if not concerns(one)]
            for first in range(0, len(mine), BATCH):
                failpoint("reconcile.before_repair")
                done += deed(kind, mine[first : first + BATCH])
                failpoint("reconcile.after_repair")
        return done + left

    # --- missing ----------------------------------------------------------------------------------------------

    def _missing(self, kind: Kind, some: list[Difference]) -> list[Difference]:
        accounts = {str(account.id): account for account in read(self._engine, kind, [UUID(one.id) for one in some])}
        why: dict[str, str] = {}
        profiles: dict[str, Message] = {}
        for one in some:
            said = _said(kind, accounts.get(one.id))
            if isinstance(said, str):
                why[one.id] = said
            else:
                profiles[one.id] = said

        def own_rows(connection: Connection, ids: Sequence[str]) -> None:
            marked = backfill_accounts.activate(connection, kind, ACTIVE, [UUID(id_) for id_ in ids])
            if marked != len(ids):
                raise TandemError("accounts have changed meanwhile", reason=Reason.IN_PROGRESS, retry_after_s=PAUSE_S)

        why |= self._created(profiles, own_rows)
        return [_told(one, why.get(one.id, "")) for one in some]

    def _roles(self, kind: Kind, some: list[Difference]) -> list[Difference]:
        writes: dict[str, Message] = {}
        for one in some:
            business_id, who, role = one.id.split("/")
            writes[one.id] = business_pb2.BusinessPerson(
                business_id=str(profile_ids.business_id(UUID(business_id))), person_id=who, role=role_to(role)
            )
        # No rows of our own: whoever is a member stays one.
        why = self._created(writes, lambda connection, ids: None)
        return [_told(one, why.get(one.id, "")) for one in some]

    def _created(
        self, writes: Mapping[str, Message], own_rows: Callable[[Connection, Sequence[str]], None]
    ) -> dict[str, str]:
        """Makes each by a transaction of its own: the names of those that could not be made, and why."""
        left, why = dict(writes), dict[str, str]()
        until = time.monotonic() + PATIENCE_S
        while left:
            names = list(left)

            def rows(connection: Connection, accepted: Sequence[tuple[int, UUID | None]]) -> list[None]:
                own_rows(connection, [names[place] for place, _ in accepted])  # noqa: B023  # called within the turn
                return [None] * len(accepted)

            try:
                answers = self._provisioning.create_many([{"write": left[name]} for name in names], rows)
            except TROUBLE as error:
                answers = [explained(error)] * len(names)
            for name, answer in zip(names, answers, strict=True):
                again = isinstance(answer, TandemError) and answer.retry_after_s is not None
                if again and time.monotonic() < until:
                    continue
                del left[name]
                if isinstance(answer, ProfileExists) and answer.field == "registration_number":
                    why[name] = f"{answer.reason.value}: {answer.field}"
                elif isinstance(answer, TandemError) and not isinstance(answer, ProfileExists):
                    why[name] = _reason(answer)
                # One that exists was made by another meanwhile.
            if left:
                time.sleep(PAUSE_S)
        return why

    # --- different --------------------------------------------------------------------------------------------

    def _status(self, kind: Kind, some: list[Difference]) -> list[Difference]:
        """The profile is there: the account says so from now on."""
        ids = sorted(UUID(one.id) for one in some)
        statement = (
            sa.update(kind.table)
            .where(kind.key.in_(ids), kind.table.c.profile_status != ACTIVE)
            .values(profile_status=ACTIVE, profile_reason=None)
        )
        with local_transaction(self._engine) as connection:
            connection.execute(statement)
        return [one.mended() for one in some]

    def _facts(self, kind: Kind, some: list[Difference]) -> list[Difference]:
        if self._policy in (None, Policy.KEEP):
            return list(some)
        assert self._policy is not None
        accounts = {str(account.id): account for account in read(self._engine, kind, [UUID(one.id) for one in some])}
        told = []
        for one in some:
            said = _said(kind, accounts.get(one.id))
            told.append(_told(one, said) if isinstance(said, str) else _told(one, self._written(said, self._policy)))
        return told

    def _written(self, ours: Profile, policy: Policy) -> str:
        """Why it could not be written; "" where it was."""
        try:
            (theirs,) = self._existing.of([ours]).values()
            paths = to_write(policy, ours, theirs)
            if not paths:
                return f"nothing that {policy.value} would write"
            self._existing.write(ours, theirs, paths)
        except ValueError:
            return Reason.NOT_FOUND.value
        except TandemError as error:
            return _reason(error)
        return ""


def _said(kind: Kind, account: Account | None) -> Profile | str:
    """What an account's old columns make, or why they make nothing."""
    said = None if account is None else account.said(kind, with_people=True)
    if said is None:
        return NO_FACTS
    whole = mapping.checked(said)
    return str(whole) if isinstance(whole, Refusal) else whole


def _told(one: Difference, why: str) -> Difference:
    return one.kept(why) if why else one.mended()


def _reason(error: TandemError) -> str:
    fields = ", ".join(dict.fromkeys(v.field.removeprefix("write.") for v in error.violations[: mapping.MAX_FIELDS]))
    return error.reason.value + (f": {fields}" if fields else "")
