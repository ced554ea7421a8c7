"""Accounts and profiles compared: each account with its profile, then what profiles has beyond them.

    1  list the ids of all profiles that our transactions have made       a set on disk
    2  page all accounts, take their profiles' ids out of the set         missing, different
    3  what is left in the set                                            extra

The order carries the proof: an account is committed before its profile is visible, so whatever was listed in 1 has its
account by the time of 2. What 2 finds is looked at a second time before it counts: signups and updates go on meanwhile.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from identity_stub.migration import mapping
from identity_stub.migration.backfill_accounts import KINDS, READING, Kind, Profile, people_of
from identity_stub.migration.listed import Listed
from identity_stub.migration.mapping import Refusal
from identity_stub.migration.reconcile_profiles import GET_PAGE, Profiles, fields_that_differ
from identity_stub.migration.reconcile_report import Difference
from identity_stub.migration.reconcile_report import Kind as Is
from identity_stub.signup import role_from, role_to
from identity_stub.users import ACTIVE
from tandem.profiles.ids import person_id
from tandem.profiles.v1 import business_pb2
from tandem.runtime.local_transaction import local_transaction

AT_ONCE = 4
"""Pages that are compared at the same time: while one waits for profiles, the next one works."""

ROLES = "roles"
STATUS = "profile_status"
IN_DOUBT = "in_doubt"


@dataclass(frozen=True, slots=True)
class Account:
    """One account as it is now. members: (user_id, role). repr leaves the facts out: it may be logged."""

    id: UUID
    row: sa.Row[Any]
    members: Sequence[tuple[UUID, str]] = ()

    def __repr__(self) -> str:
        return f"Account({self.id})"

    @property
    def status(self) -> str:
        """Whether it has its profile, as it says itself."""
        return str(self.row.profile_status)

    @property
    def has_facts(self) -> bool:
        """Whether it is from before there were profiles."""
        return any(self.row[2:])

    def said(self, kind: Kind, *, with_people: bool = False) -> Profile | Refusal | None:
        """What its old columns say; None where it has none."""
        if not self.has_facts:
            return None
        if kind.with_people:
            return mapping.business_of(self.row, self.members if with_people else ())
        return mapping.person_of(self.row)


@dataclass(slots=True)
class Page:
    """What one page of accounts came to. waiting: accounts without a profile, by their status."""

    accounts: int = 0
    waiting: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differences: list[Difference] = field(default_factory=list)


def pages(engine: Engine, kind: Kind) -> Iterator[list[Account]]:
    """All accounts in the order of their ids, GET_PAGE at a time, with no local transaction in between."""
    after: UUID | None = None
    while True:
        page = _read(engine, kind, sa.true() if after is None else kind.key > after)
        if page:
            yield page
            after = page[-1].id
        if len(page) < GET_PAGE:
            return


def read(engine: Engine, kind: Kind, ids: Sequence[UUID]) -> list[Account]:
    """These accounts, as they are now; GET_PAGE at most."""
    return _read(engine, kind, kind.key.in_(list(ids)))


def _read(engine: Engine, kind: Kind, where: sa.ColumnElement[bool]) -> list[Account]:
    chosen = sa.select(kind.key, kind.table.c.profile_status, *kind.old).where(where).order_by(kind.key).limit(GET_PAGE)
    with local_transaction(engine, READING) as connection:
        rows = connection.execute(chosen).all()
        members = people_of(connection, [row[0] for row in rows]) if kind.with_people and rows else {}
    return [Account(row[0], row, members.get(row[0], ())) for row in rows]


def total(engine: Engine, parts: Collection[str]) -> int:
    """How many accounts there are of these kinds."""
    with local_transaction(engine, READING) as connection:
        return sum(
            int(connection.execute(sa.select(sa.func.count()).select_from(kind.table)).scalar_one())
            for kind in KINDS.values()
            if kind.name in parts
        )


class Comparison:
    """One kind of accounts with its profiles. engine: identity's, the primary."""

    def __init__(self, engine: Engine, profiles: Profiles, kind: Kind) -> None:
        self._engine = engine
        self._profiles = profiles
        self._kind = kind

    def run(self) -> Iterator[Page]:
        """Page by page. Raises TandemError where profiles can't be asked."""
        kind = self._kind
        with Listed() as listed, ThreadPoolExecutor(AT_ONCE, thread_name_prefix="reconcile") as threads:
            for ids in self._profiles.ids(kind):
                listed.add(ids)
            running: deque[Future[Page]] = deque()
            try:
                for accounts in pages(self._engine, kind):
                    ours = listed.take([kind.profile_id(account.id) for account in accounts])
                    running.append(threads.submit(self._compare, accounts, ours))
                    if len(running) >= 2 * AT_ONCE:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for future in running:
                    future.cancel()
            for extra in listed.rest():
                yield Page(differences=[Difference(kind.name, Is.EXTRA, str(id_)) for id_ in extra])

    def _compare(self, accounts: Sequence[Account], ours: set[UUID]) -> Page:
        """A page. What differs is read and compared once more before it counts."""
        page = Page(len(accounts))
        first = self._look(accounts, ours)
        suspects = sorted(id_ for id_, found in first.items() if isinstance(found, list) and found)
        again = self._look(read(self._engine, self._kind, suspects), ours) if suspects else {}
        for found in (first | again).values():
            if isinstance(found, str):
                page.waiting[found] += 1
            else:
                page.differences += found
        return page

    def _look(self, accounts: Sequence[Account], ours: set[UUID]) -> dict[UUID, list[Difference] | str]:
        """What each account differs in, or the status of one that waits for its profile."""
        kind, ids = self._kind, {account.id: self._kind.profile_id(account.id) for account in accounts}
        # That a listed profile is there is known; it is fetched where more is to be compared.
        known = {
            account.id
            for account in accounts
            if not kind.with_people and ids[account.id] in ours and not (account.status == ACTIVE and account.has_facts)
        }
        fetched = self._profiles.get(kind, [id_ for account, id_ in ids.items() if account not in known])
        looked: dict[UUID, list[Difference] | str] = {}
        for account in accounts:
            profile = fetched.get(ids[account.id])
            there = profile is not None or account.id in known
            if profile is None and ids[account.id] in fetched:
                looked[account.id] = [self._difference(Is.UNFINISHED, account, IN_DOUBT)]
            elif account.status != ACTIVE:
                looked[account.id] = [self._difference(Is.DIFFERENT, account, STATUS)] if there else account.status
            elif not there:
                looked[account.id] = [self._difference(Is.MISSING, account)]
            else:
                of_ours = ids[account.id] in ours
                looked[account.id] = [] if profile is None else self._differing(account, profile, of_ours)
        return looked

    def _differing(self, account: Account, profile: Profile, ours: bool) -> list[Difference]:
        """What a profile that is there differs in. ours: a transaction of ours has made it."""
        found: list[Difference] = []
        if isinstance(profile, business_pb2.Business):
            found += _roles(account, profile)
            profile.ClearField("people")
        # After the first change profiles alone knows; and so it does of what another service has made.
        if ours and profile.version == 1:
            said = account.said(self._kind)
            profile.ClearField("version")
            if said is not None and not isinstance(said, Refusal) and said != profile:
                found.append(self._difference(Is.DIFFERENT, account, *fields_that_differ(said, profile)))
        return found

    def _difference(self, kind: Is, account: Account, *fields: str) -> Difference:
        return Difference(self._kind.name, kind, str(account.id), fields)


def _roles(account: Account, profile: business_pb2.Business) -> list[Difference]:
    """Members without their role in profiles, and roles without a member."""
    here = {(str(person_id(user_id)), role_to(role)) for user_id, role in account.members}
    there = {(one.person_id, one.role) for one in profile.people}
    return [
        Difference(ROLES, kind, role_name(account.id, who, role))
        for kind, some in ((Is.MISSING, here - there), (Is.EXTRA, there - here))
        for who, role in sorted(some)
    ]


def role_name(business_id: UUID, who: str, role: business_pb2.Role.ValueType) -> str:
    """A role in a report: the account of the business, the person, and what it is."""
    return f"{business_id}/{who}/{role_from(role)}"
