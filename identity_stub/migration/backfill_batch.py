"""One batch of a backfill to its end, whatever it meets on the way.

read ─▶ Prepare ─▶ one UPDATE and the decision, one local commit ─▶ Commit
          │ refused: those that are go out, marked with the reason, and the rest is tried again
          └ there already: another backfill was quicker, or it is a conflict (conflicts.py)
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration.backfill_accounts import Account, Kind, Profile
from identity_stub.migration.backfill_report import Ledger, Options, Report
from identity_stub.migration.conflicts import Existing, differing, roles_lacking, to_write
from identity_stub.migration.listed import Numbers
from identity_stub.migration.mapping import Refusal, checked
from identity_stub.signup import TROUBLE
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Refused
from tandem.profiles.v1 import business_pb2
from tandem.runtime.database import explained
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.failpoints import failpoint
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import frames, logger

log = logger("identity.backfill")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

_WRITE = re.compile(r"writes\[(\d+)\]\.?")
_PASSING = frozenset(
    {
        Reason.UNAVAILABLE, Reason.DEADLINE_PASSED, Reason.OVERLOADED, Reason.DATABASE_UNAVAILABLE,
        Reason.DATABASE_FULL, Reason.IN_PROGRESS, Reason.IN_DOUBT, Reason.HELD, Reason.FENCED, Reason.OUTCOME_UNKNOWN,
        Reason.VERSION_MISMATCH, Reason.NOT_FOUND,
    }
)  # fmt: skip

_OF_CONTENT = frozenset({Reason.MESSAGE_TOO_LARGE, Reason.ALREADY_EXISTS, Reason.REFUSED})
"""What an account is refused for, even where a refusal names no write."""


_TAKEN = str(Refusal(Reason.ALREADY_EXISTS, (Violation("registration_number", "is another's"),)))


class _Quicker(Exception):
    """Somebody else has seen to some of the accounts."""


class Batch:
    """Accounts of one kind that become profiles together, but for those that can't."""

    def __init__(
        self,
        kind: Kind,
        ids: Sequence[UUID],
        *,
        coordinator: Coordinator,
        participant: str,
        existing: Existing,
        options: Options,
        ledger: Ledger,
        numbers: Numbers,
    ) -> None:
        self._kind = kind
        self._todo = [list(ids)]
        self._coordinator = coordinator
        self._engine = coordinator.engine
        self._participant = participant
        self._existing = existing
        self._options = options
        self._ledger = ledger
        self._numbers = numbers

    def run(self) -> None:
        """To the end, or until all are stopped. Raises only what is a mistake of ours."""
        failed, pause_s, until = 0, FIRST_PAUSE_S, 0.0
        while self._todo and not self._ledger.stopping.is_set():
            try:
                self._step()
            except TROUBLE as error:
                told = explained(error)
                until = until if failed else time.monotonic() + self._options.patience_s
                if told.reason not in _PASSING or time.monotonic() > until:
                    if told.reason is Reason.INTERNAL:  # nothing else will know where it arose
                        log.error("a batch failed", kind=self._kind.name, exception=frames(error))
                    self._ledger.stop(told)
                    return
                failed += 1
                self._ledger.change(_retried)
                if failed > 1 and self._todo:  # what is too much for one deadline is not in halves
                    self._todo += _halves(self._todo.pop())
                self._ledger.stopping.wait(max(pause_s, min(told.retry_after_s or 0.0, LONGEST_PAUSE_S)))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                failed, pause_s = 0, FIRST_PAUSE_S

    def _step(self) -> None:
        """One attempt at the last of the lists. Raises one of TROUBLE; what is left to do is in the lists then."""
        some = self._todo[-1]
        if not some:
            self._todo.pop()
            return
        read = accounts.read(self._engine, self._kind, self._options.status, some)
        failpoint("backfill.after_read")
        if self._options.dry_run:
            self._rehearse(some, read)
            self._todo.pop()
            return
        self._only(some, [one.id for one in read])
        refused = {one.id: str(one.profile) for one in read if isinstance(one.profile, Refusal)}
        good = [one for one in read if one.id not in refused]
        later = self._of_others(good)
        if later and len(later) < len(good):
            # By themselves, so that their refusal does not have all the others sent again.
            self._todo[-1:] = [sorted(later), [one.id for one in read if one.id not in later]]
            good = [one for one in good if one.id not in later]
        if good:
            self._create_all(good, refused)
        else:
            self._refuse(refused)
        self._todo.pop()

    def _of_others(self, some: Sequence[Account]) -> set[UUID]:
        """Those whose registration number another account of this run has shown first."""
        return self._numbers.of_others(
            (one.id, f"{one.profile.registration_country} {one.profile.registration_number}")
            for one in some
            if isinstance(one.profile, business_pb2.Business) and one.profile.registration_number
        )

    def _only(self, some: Sequence[UUID], waiting: list[UUID]) -> None:
        """The others are seen to."""
        gone = len(some) - len(waiting)
        self._todo[-1] = waiting
        if gone:
            self._ledger.change(lambda report: _gone(report, gone))

    def _create_all(self, good: Sequence[Account], refused: Mapping[UUID, str]) -> None:
        """Profiles for the accounts, marks for them and for those that make none; or other lists in the last one's
        place.
        """
        ids = [one.id for one in good]
        try:
            self._create(ids, _profiles(good), refused)
        except _Quicker:
            self._todo.insert(-1, self._todo[-1])  # below itself, which is about to be taken off
        except Refused as error:
            self._refuse(refused)
            self._sort_out(good, error)
        except InvalidRequest as error:  # too large for one message
            self._refuse(refused)
            if error.reason is not Reason.INVALID_REQUEST:
                raise
            self._take_apart(ids, error.reason.value)
        else:
            self._ledger.change(lambda report: _created(report, self._kind, len(ids), refused))

    def _create(
        self,
        ids: Sequence[UUID],
        writes: Sequence[Profile | business_pb2.BusinessPerson],
        refused: Mapping[UUID, str] = {},
    ) -> None:
        """The writes and the marks on the accounts, together. Raises _Quicker, Refused, one of TROUBLE."""
        with self._coordinator.transaction({self._participant: writes}) as tx:
            if refused:
                accounts.reject(tx.connection, self._kind, self._options.status, refused)
            if accounts.activate(tx.connection, self._kind, self._options.status, ids) != len(ids):
                raise _Quicker

    # --- what was refused -----------------------------------------------------------------------------------

    def _sort_out(self, good: Sequence[Account], refused: Refused) -> None:
        """Takes those out that the refusal names; the others are tried again."""
        if refused.reason is Reason.ALREADY_EXISTS and not _of_numbers(refused):
            self._resolve(good)
            return
        against = _against(refused, good)
        left = [one.id for one in good if one.id not in against]
        if not against:
            if refused.reason not in _OF_CONTENT:  # of the caller or of its configuration: no account is to blame
                raise refused
            self._take_apart(left, refused.reason.value)
        elif any(violation.rule == "writes.unique" for violation in refused.violations):
            # The first of two has it, unless it is refused itself.
            self._todo[-1:-1] = [sorted(against), left]
        else:
            self._refuse(against)
            self._todo.insert(-1, left)

    def _take_apart(self, ids: Sequence[UUID], reason: str) -> None:
        """Nobody says which: halves, until it is one alone."""
        if len(ids) > 1:
            self._todo[-1:-1] = _halves(ids)
        else:
            self._refuse({ids[0]: reason})

    def _refuse(self, reasons: Mapping[UUID, str]) -> None:
        """Marks these of the last list with their reasons."""
        if not reasons:
            return
        failpoint("backfill.before_refusal")
        with local_transaction(self._engine) as connection:
            accounts.reject(connection, self._kind, self._options.status, reasons)
        self._seen_to(reasons)
        self._ledger.change(lambda report: report.refused.update(reasons.values()))
        failpoint("backfill.after_refusal")

    def _seen_to(self, some: Collection[UUID]) -> None:
        self._todo[-1] = [id_ for id_ in self._todo[-1] if id_ not in some]

    # --- conflicts ------------------------------------------------------------------------------------------

    def _resolve(self, good: Sequence[Account]) -> None:
        """Sees to those whose profile is there; the others are tried again."""
        found = self._existing.of(_profiles(good))
        # A backfill's own mark is older than what can be read of its profile: who still waits was not its account.
        ids = [one.id for one in good]
        read = accounts.read(self._engine, self._kind, self._options.status, ids)
        self._only(ids, [one.id for one in read])
        for one in read:
            theirs = found.get(str(self._kind.profile_id(one.id)))
            if theirs is not None and not isinstance(one.profile, Refusal):
                self._resolve_one(one.id, one.profile, theirs)
        if self._todo[-1] == ids:
            raise TandemError("what stood in the way has just gone", reason=Reason.IN_PROGRESS)
        self._todo.insert(-1, self._todo[-1])

    def _resolve_one(self, id_: UUID, ours: Profile, theirs: Profile) -> None:
        """By the policy. Where somebody interferes it stays in the list. Raises one of TROUBLE."""
        policy, differ = self._options.policy, differing(ours, theirs)
        paths = to_write(policy, ours, theirs)
        if paths:
            try:
                self._existing.write(ours, theirs, paths)
            except TandemError as error:
                if error.reason in _PASSING:
                    raise
                wrong = error.violations or (Violation(error.metadata.get("field", "profile"), "can't be had"),)
                self._refuse({id_: str(Refusal(error.reason, wrong))})
                return
        failpoint("backfill.after_update")
        lacking: Sequence[business_pb2.BusinessPerson] = ()
        if isinstance(ours, business_pb2.Business) and isinstance(theirs, business_pb2.Business):
            lacking = roles_lacking(ours, theirs)
        try:
            self._mark(id_, lacking)
        except _Quicker:
            return
        except Refused as refused:
            if refused.reason is not Reason.ALREADY_EXISTS:  # else somebody has just given the role
                self._refuse({id_: f"{refused.reason.value}: people"})
            return
        self._seen_to({id_})
        self._ledger.conflict(policy, differ)

    def _mark(self, id_: UUID, lacking: Sequence[business_pb2.BusinessPerson]) -> None:
        """As having its profile, together with the roles that its business lacks. Raises as `_create` does."""
        if lacking:
            self._create([id_], lacking)
            return
        with local_transaction(self._engine) as connection:
            if not accounts.activate(connection, self._kind, self._options.status, [id_]):
                raise _Quicker

    # --- dry run --------------------------------------------------------------------------------------------

    def _rehearse(self, some: Sequence[UUID], read: Sequence[Account]) -> None:
        """Counts what would become of them. A number that no waiting account has, but a profile, is not foreseen."""
        told = [Account(one.id, checked(one.profile)) for one in read]
        refused = [str(one.profile) for one in told if isinstance(one.profile, Refusal)]
        good = {str(self._kind.profile_id(one.id)): one.profile for one in told if not isinstance(one.profile, Refusal)}
        found = self._existing.of(list(good.values())) if good else {}
        taken = {str(self._kind.profile_id(id_)) for id_ in self._of_others(told)} - found.keys()
        refused += [_TAKEN] * len(taken)
        for id_, theirs in found.items():
            self._ledger.conflict(self._options.policy, differing(good[id_], theirs))

        def count(report: Report) -> None:
            report.elsewhere += len(some) - len(read)
            report.refused.update(refused)
            report.created[self._kind.name] += len(good) - len(found) - len(taken)

        self._ledger.change(count)


def _profiles(some: Sequence[Account]) -> list[Profile]:
    return [one.profile for one in some if not isinstance(one.profile, Refusal)]


def _halves(ids: Sequence[UUID]) -> list[list[UUID]]:
    half = (len(ids) + 1) // 2
    return [list(part) for part in (ids[half:], ids[:half]) if part]


def _of_numbers(refused: Refused) -> bool:
    """Whether registration numbers are all that others have already."""
    fields = {refused.metadata.get("field", ""), *(_WRITE.sub("", one.field) for one in refused.violations)}
    return fields == {"registration_number"}


def _against(refused: Refused, asked: Sequence[Account]) -> dict[UUID, str]:
    """The accounts whose writes a refusal names, and what it has against each."""
    against: dict[int, list[Violation]] = {}
    for violation in refused.violations:
        match = _WRITE.search(violation.field)
        if match is not None:
            of = violation.field[match.end() :] or "profile"
            against.setdefault(int(match[1]), []).append(Violation(of, violation.description))
    return {
        asked[place].id: str(Refusal(refused.reason, tuple(wrong)))
        for place, wrong in against.items()
        if place < len(asked)
    }


def _retried(report: Report) -> None:
    report.retries += 1


def _created(report: Report, kind: Kind, count: int, refused: Mapping[UUID, str]) -> None:
    report.created[kind.name] += count
    report.refused.update(refused.values())


def _gone(report: Report, count: int) -> None:
    report.elsewhere += count
