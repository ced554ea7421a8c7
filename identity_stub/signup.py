"""The use cases: sign up, create a user or a business, invite, accept. Each can be repeated by its request id.

    the first answer, if the request succeeded before      no RPC
    what can be refused at once                            no RPC
    the provisioning: profile and own rows, or neither
    on any trouble, the first answer again                 another attempt of the same request may have won

No local transaction is open across the provisioning: the checks run as single statements before it, and what they
found is guarded again by constraints and by guarded updates inside it.

Many sign-ups at once: `bulk.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import psycopg2
import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.engine import Connection, Engine

from identity_stub import facts, ids, requests, users
from identity_stub.provisioning import ProfileExists, Provisioning
from identity_stub.requests import Made, Request
from identity_stub.tables import EMAIL_KEY
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.database import ASIDE, constraint, explained
from tandem.runtime.errors import DatabaseError, InvalidRequest, Reason, TandemError
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import logger

log = logger("identity.signup")

RETRY_AFTER_S = 1.0
"""What a client is told to wait where an earlier attempt of its request is being finished; below push_after."""

TROUBLE = (TandemError, sa.exc.SQLAlchemyError, psycopg2.Error)
"""What an attempt may end with; anything else is a mistake of ours."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be written once nothing speaks against it. profile: the request's field → the entity."""

    own_rows: Callable[[Connection], Made]
    profile: Mapping[str, Message]


_Check = Callable[[Connection], _Plan]
"""Reads what speaks against a request and raises it; else plans it. Runs again where the plan failed."""


@dataclass(frozen=True)
class SignUp:
    """What a sign-up asks for. repr leaves the facts out: it may be logged."""

    request: Request
    email: str
    person: person_pb2.Person
    business: business_pb2.Business

    def __repr__(self) -> str:
        return f"SignUp({self.request!r})"

    @cached_property
    def user_id(self) -> UUID:
        """The user that it makes."""
        return ids.user_id(self.request.caller, self.request.request_id)

    @cached_property
    def business_id(self) -> UUID:
        """The business that it makes."""
        return ids.business_id(self.request.caller, self.request.request_id)

    @property
    def profile(self) -> Mapping[str, Message]:
        """What profiles is to make for it."""
        return {
            "person": _person(self.person, self.user_id),
            "business": _owned(self.business, self.business_id, self.user_id),
        }


class SignUps:
    """What identity can make.

    engine: identity's database, the primary. Every method raises TandemError, with `retry_after_s` where a repeat with
    the same request id helps, and ALREADY_EXISTS with the field in its metadata where it doesn't.
    """

    def __init__(self, engine: Engine, provisioning: Provisioning) -> None:
        self.engine = engine
        self.provisioning = provisioning
        self._status = provisioning.profile_status

    def sign_up(self, asked: SignUp) -> Made:
        """A user, and a business that the user owns."""
        return self._create(asked.request, _of_sign_up(asked, self._status))

    def sign_up_after(self, asked: SignUp, error: TandemError) -> Made:
        """The answer to a sign-up whose provisioning has said `error` already, here or in company."""
        return self._after(asked.request, _of_sign_up(asked, self._status), error)

    def create_user(self, request: Request, *, email: str, person: person_pb2.Person) -> Made:
        """A user."""
        user_id = ids.user_id(request.caller, request.request_id)

        def check(connection: Connection) -> _Plan:
            _refuse_taken(connection, email)
            return _Plan(own_rows, {"person": _person(person, user_id)})

        def own_rows(connection: Connection) -> Made:
            return Made(user=users.add_user(connection, user_id, email, self._status))

        return self._create(request, check)

    def create_business(self, request: Request, *, owner: UUID, business: business_pb2.Business) -> Made:
        """A business, owned by a user who is there."""
        business_id = ids.business_id(request.caller, request.request_id)

        def check(connection: Connection) -> _Plan:
            if users.user(connection, owner) is None:
                raise _not_found("owner_user_id", "user")
            return _Plan(own_rows, {"business": _owned(business, business_id, owner)})

        def own_rows(connection: Connection) -> Made:
            return Made(business=users.add_business(connection, business_id, owner, self._status))

        return self._create(request, check)

    def accept_invitation(self, request: Request, *, invitation_id: UUID, person: person_pb2.Person) -> Made:
        """The invited user, with the role."""
        user_id = ids.user_id(request.caller, request.request_id)

        def check(connection: Connection) -> _Plan:
            invitation = _open_invitation(connection, invitation_id)
            try:
                _refuse_taken(connection, invitation.email)
            except TandemError:
                _open_invitation(connection, invitation_id)  # who has the address has perhaps just accepted this one
                raise
            unmigrated = _unmigrated(connection, invitation.business_id, self._status)

            def own_rows(connection: Connection) -> Made:
                user = users.add_user(connection, user_id, invitation.email, self._status)
                users.add_member(connection, invitation.business_id, user_id, invitation.role)
                if unmigrated:
                    facts.mark_active(connection, invitation.business_id)
                if not users.accept(connection, invitation_id, user_id):
                    raise _closed("accepted")
                return Made(user=user, business=users.business(connection, invitation.business_id))

            role = business_pb2.BusinessPerson(
                business_id=str(profile_ids.business_id(invitation.business_id)),
                person_id=str(profile_ids.person_id(user_id)),
                role=role_to(invitation.role),
            )
            return _Plan(own_rows, {**unmigrated, "person": _person(person, user_id), "role": role})

        return self._create(request, check)

    def invite(self, request: Request, *, business_id: UUID, inviter: UUID, email: str, role: str) -> Made:
        """An invitation: identity's own affair, so an ordinary local transaction."""
        invitation_id = ids.invitation_id(request.caller, request.request_id)

        def check(connection: Connection) -> _Plan:
            if users.business(connection, business_id) is None:
                raise _not_found("business_id", "business")
            if users.roles(connection, business_id, inviter).isdisjoint(users.MAY_INVITE):
                raise TandemError("only an owner or director of the business may invite", reason=Reason.NOT_ALLOWED)
            # Accepting makes the user, so nobody could ever accept it.
            _refuse_taken(connection, email)
            return _Plan(own_rows, {})

        def own_rows(connection: Connection) -> Made:
            return Made(
                invitation=users.add_invitation(
                    connection, invitation_id, business_id=business_id, inviter=inviter, email=email, role=role
                )
            )

        return self._create(request, check)

    # --- the road they all take -------------------------------------------------------------------------------

    def _create(self, request: Request, check: _Check) -> Made:
        with local_transaction(self.engine, ASIDE) as connection:
            plan = _made_or_planned(connection, request, check)
        if isinstance(plan, Made):
            return plan

        def all_rows(connection: Connection, transaction_id: UUID | None) -> Made:
            made = plan.own_rows(connection)
            requests.store(connection, request, made, transaction_id)
            return made

        try:
            if plan.profile:
                return self.provisioning.create(plan.profile, all_rows)
            with local_transaction(self.engine) as connection:
                return all_rows(connection, None)
        except TROUBLE as error:
            return self._after(request, check, error)

    def _after(self, request: Request, check: _Check, error: Exception) -> Made:
        """The answer after trouble: another attempt's success, or what a client can make use of."""
        try:
            found: Made | _Plan | None
            with local_transaction(self.engine, ASIDE) as connection:
                if isinstance(error, sa.exc.IntegrityError):
                    # Whoever was faster is visible now, so the checks say best what is in the way.
                    found = _made_or_planned(connection, request, check)
                else:
                    found = requests.first_answer(connection, request)
            if isinstance(found, Made):
                return found
        except (sa.exc.SQLAlchemyError, psycopg2.Error, DatabaseError) as unread:
            # A refusal that could not be checked is none; what says "again" already stays what it is.
            raise (error if _says_again(error) else explained(unread)) from unread
        raise _answer(error) from error


def _of_sign_up(asked: SignUp, status: str) -> _Check:
    def check(connection: Connection) -> _Plan:
        _refuse_taken(connection, asked.email)
        return _Plan(own_rows, asked.profile)

    def own_rows(connection: Connection) -> Made:
        return Made(
            user=users.add_user(connection, asked.user_id, asked.email, status),
            business=users.add_business(connection, asked.business_id, asked.user_id, status),
        )

    return check


def _made_or_planned(connection: Connection, request: Request, check: _Check) -> Made | _Plan:
    """The request's first answer, or what is to be done for it. Raises what speaks against it."""
    before = requests.first_answer(connection, request)
    if before is not None:
        return before
    try:
        return check(connection)
    except TandemError:
        # What speaks against it may be the request's own work: another attempt has committed since the first look.
        before = requests.first_answer(connection, request)
        if before is None:
            raise
        return before


def _says_again(error: Exception) -> bool:
    return isinstance(error, TandemError) and error.retry_after_s is not None


def _answer(error: Exception) -> TandemError:
    """Trouble that no other attempt explains, as the client is told of it."""
    if isinstance(error, ProfileExists):
        if error.field == "registration_number":
            return _exists(error.field)
        # An id of this very request. Its account should have been found, since it is decided before it is visible.
        log.warning("profile without its account", field=error.field, transaction=str(error.transaction_id))
        return _being_finished()
    if isinstance(error, sa.exc.IntegrityError):
        violated = constraint(error) or ""
        if violated == EMAIL_KEY:
            return _exists("email")
        if violated.endswith("_pkey"):
            return _being_finished()
    return explained(error)


def _exists(field: str) -> TandemError:
    return TandemError(
        f"there is one with this {field} already", reason=Reason.ALREADY_EXISTS, metadata={"field": field}
    )


def _being_finished() -> TandemError:
    return TandemError(
        "an earlier attempt of this request is being finished: repeat it with the same request_id",
        reason=Reason.HELD,
        retry_after_s=RETRY_AFTER_S,
    )


def _not_found(field: str, what: str) -> TandemError:
    return TandemError(f"there is no such {what}", reason=Reason.NOT_FOUND, metadata={"field": field})


def _closed(why: str) -> TandemError:
    return TandemError(f"the invitation has {why}" if why == "expired" else f"the invitation has been {why}",
                       reason=Reason.REFUSED, metadata={"field": "invitation_id", "why": why})  # fmt: skip


def _open_invitation(connection: Connection, invitation_id: UUID) -> users.Invitation:
    found = users.invitation(connection, invitation_id)
    if found is None:
        raise _not_found("invitation_id", "invitation")
    invitation, expired = found
    if invitation.accepted_by is not None:
        raise _closed("accepted")
    if expired:
        raise _closed("expired")
    return invitation


def _refuse_taken(connection: Connection, email: str) -> None:
    if users.email_taken(connection, email):
        raise _exists("email")


def _unmigrated(connection: Connection, business_id: UUID, first_status: str) -> Mapping[str, Message]:
    """What a business from before there were profiles needs before it can have a role there: its own profile.

    first_status: with which this design's accounts begin; such a one's profile comes by itself, or by an update.
    """
    if users.business_status(connection, business_id) in (None, users.ACTIVE, first_status):
        return {}
    if first_status != users.ACTIVE:
        facts.refuse_migration("invitation_id")
    try:
        return {"business": facts.of_old_columns(connection, business_id)}
    except InvalidRequest as error:
        raise TandemError(
            "the facts of the business must be mended before it can have new people",
            reason=Reason.REFUSED,
            metadata={"field": "invitation_id", "why": "business"},
        ) from error


# --- translating to profiles ------------------------------------------------------------------------------------


def role_to(role: str) -> business_pb2.Role.ValueType:
    """The contract's role of a stored one."""
    return business_pb2.Role.Value(f"ROLE_{role.upper()}")


def role_from(role: business_pb2.Role.ValueType) -> str:
    """A role as it is stored."""
    return business_pb2.Role.Name(role).removeprefix("ROLE_").lower()


def _person(person: person_pb2.Person, user_id: UUID) -> person_pb2.Person:
    write = person_pb2.Person()
    write.CopyFrom(person)
    write.person_id = str(profile_ids.person_id(user_id))
    return write


def _owned(business: business_pb2.Business, business_id: UUID, owner: UUID) -> business_pb2.Business:
    write = business_pb2.Business()
    write.CopyFrom(business)
    write.business_id = str(profile_ids.business_id(business_id))
    write.people.add(person_id=str(profile_ids.person_id(owner)), role=business_pb2.ROLE_OWNER)
    return write
