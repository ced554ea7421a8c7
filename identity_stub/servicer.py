"""IdentityService: validates, translates, delegates, and nothing else. (A request's shape is checked by the server.)"""

from __future__ import annotations

from uuid import UUID

import grpc
from google.protobuf.message import Message
from sqlalchemy.engine import Engine

from identity_stub import users
from identity_stub.bulk import Bulk
from identity_stub.facts import Facts, Told
from identity_stub.requests import Kind, Made, Request, content_hash
from identity_stub.signup import SignUp, SignUps, role_from, role_to
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.auth import caller_of
from tandem.runtime.database import ASIDE
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.server import Server, time_left_s
from tandem.runtime.status import ok, to_status
from tandem.runtime.validation import validate
from tandem.runtime.wire import timestamp


class IdentityServicer(identity_service_pb2_grpc.IdentityServiceServicer):
    """The gRPC face of the accounts."""

    def __init__(self, engine: Engine, sign_ups: SignUps, facts: Facts) -> None:
        self._engine = engine
        self._sign_ups = sign_ups
        self._facts = facts
        self._bulk = Bulk(sign_ups)

    def add_to(self, server: Server) -> None:
        """Adds the service to a server."""
        server.add(
            pb.DESCRIPTOR.services_by_name["IdentityService"],
            self,
            identity_service_pb2_grpc.add_IdentityServiceServicer_to_server,
        )

    # --- making -----------------------------------------------------------------------------------------------

    def SignUp(self, request: pb.SignUpRequest, context: grpc.ServicerContext) -> pb.SignUpResponse:
        """A user and a business."""
        return _signed_up(self._sign_ups.sign_up(_asked(request, context)))

    def BatchSignUp(self, request: pb.BatchSignUpRequest, context: grpc.ServicerContext) -> pb.BatchSignUpResponse:
        """Many of them: the well-formed ones together, the others are told what is wrong with them."""
        answers: dict[int, Made | TandemError] = {}
        asked: dict[int, SignUp] = {}
        for place, one in enumerate(request.requests):
            try:
                validate(one)
                asked[place] = _asked(one, context)
            except InvalidRequest as error:
                answers[place] = error
        if asked:
            answers |= zip(asked, self._bulk.sign_up(list(asked.values())), strict=True)
        return pb.BatchSignUpResponse(results=[_result(place, answers[place]) for place in range(len(answers))])

    def CreateUser(self, request: pb.CreateUserRequest, context: grpc.ServicerContext) -> pb.CreateUserResponse:
        """A user."""
        _check_assigned(person=request.person)
        made = self._sign_ups.create_user(
            _named(Kind.CREATE_USER, request, request.request_id, context), email=request.email, person=request.person
        )
        return pb.CreateUserResponse(user=_user_of(made))

    def CreateBusiness(
        self, request: pb.CreateBusinessRequest, context: grpc.ServicerContext
    ) -> pb.CreateBusinessResponse:
        """A further business of a user."""
        _check_assigned(business=request.business)
        made = self._sign_ups.create_business(
            _named(Kind.CREATE_BUSINESS, request, request.request_id, context),
            owner=UUID(request.owner_user_id),
            business=request.business,
        )
        return pb.CreateBusinessResponse(business=_business_of(made))

    def InviteUser(self, request: pb.InviteUserRequest, context: grpc.ServicerContext) -> pb.InviteUserResponse:
        """An invitation."""
        made = self._sign_ups.invite(
            _named(Kind.INVITE_USER, request, request.request_id, context),
            business_id=UUID(request.business_id),
            inviter=UUID(request.inviter_user_id),
            email=request.email,
            role=role_from(request.role),
        )
        assert made.invitation is not None
        return pb.InviteUserResponse(invitation=_invitation(made.invitation))

    def AcceptInvitation(
        self, request: pb.AcceptInvitationRequest, context: grpc.ServicerContext
    ) -> pb.AcceptInvitationResponse:
        """The invited user."""
        _check_assigned(person=request.person)
        made = self._sign_ups.accept_invitation(
            _named(Kind.ACCEPT_INVITATION, request, request.request_id, context),
            invitation_id=UUID(request.invitation_id),
            person=request.person,
        )
        return pb.AcceptInvitationResponse(user=_user_of(made), business=_business_of(made))

    # --- looking ----------------------------------------------------------------------------------------------

    def GetUser(self, request: pb.GetUserRequest, context: grpc.ServicerContext) -> pb.GetUserResponse:
        """One user, by id or by address."""
        with local_transaction(self._engine, ASIDE) as connection:
            if request.WhichOneof("by") == "email":
                found = users.user_by_email(connection, request.email)
            else:
                found = users.user(connection, UUID(request.user_id))
        if found is None:
            raise TandemError("there is no such user", reason=Reason.NOT_FOUND)
        return pb.GetUserResponse(user=_user(found))

    def GetBusiness(self, request: pb.GetBusinessRequest, context: grpc.ServicerContext) -> pb.GetBusinessResponse:
        """One business with its members, and with its facts where they are asked for."""
        business_id = UUID(request.business_id)
        if request.with_profile:
            return pb.GetBusinessResponse(
                business=_told(self._facts.business(business_id, timeout_s=time_left_s(context)))
            )
        with local_transaction(self._engine, ASIDE) as connection:
            found = users.business(connection, business_id)
        if found is None:
            raise _no_business()
        return pb.GetBusinessResponse(business=_business(found))

    def UpdateBusiness(
        self, request: pb.UpdateBusinessRequest, context: grpc.ServicerContext
    ) -> pb.UpdateBusinessResponse:
        """Changes facts of a business, in profiles."""
        told = self._facts.update(
            UUID(request.business_id), request.profile, request.update_mask.paths, timeout_s=time_left_s(context)
        )
        return pb.UpdateBusinessResponse(business=_told(told))


# --- requests -----------------------------------------------------------------------------------------------------


def _named(kind: Kind, message: Message, request_id: str, context: grpc.ServicerContext) -> Request:
    return Request(caller_of(context), request_id, kind, content_hash(message))


def _asked(request: pb.SignUpRequest, context: grpc.ServicerContext) -> SignUp:
    """Raises InvalidRequest."""
    _check_assigned(person=request.person, business=request.business)
    named = _named(Kind.SIGN_UP, request, request.request_id, context)
    return SignUp(named, request.email, request.person, request.business)


def _check_assigned(**entities: person_pb2.Person | business_pb2.Business) -> None:
    """Raises InvalidRequest where the request sets what we assign: it would be lost without a word."""
    given = [
        f"{path}.{name}"
        for path, entity in entities.items()
        for name in ("person_id", "business_id", "version", "people")
        if getattr(entity, name, None)
    ]
    if given:
        raise InvalidRequest([Violation(name, "must be empty: it is assigned", "assigned") for name in given])


# --- answers ------------------------------------------------------------------------------------------------------


def _signed_up(made: Made) -> pb.SignUpResponse:
    return pb.SignUpResponse(user=_user_of(made), business=_business_of(made))


def _result(place: int, answer: Made | TandemError) -> pb.BatchSignUpResult:
    """One of a batch; what is wrong with a request is told with its place in the batch."""
    if isinstance(answer, Made):
        return pb.BatchSignUpResult(status=ok(), response=_signed_up(answer))
    if isinstance(answer, InvalidRequest):
        answer = answer.below(f"requests[{place}]")
    return pb.BatchSignUpResult(status=to_status(answer))


def _user_of(made: Made) -> pb.User:
    assert made.user is not None
    return _user(made.user)


def _business_of(made: Made) -> pb.Business:
    assert made.business is not None
    return _business(made.business)


def _user(user: users.User) -> pb.User:
    return pb.User(
        user_id=str(user.user_id),
        email=user.email,
        person_id=str(profile_ids.person_id(user.user_id)),
        create_time=timestamp(user.created_at),
        profile_status=pb.ProfileStatus.Value(f"PROFILE_STATUS_{user.profile_status.upper()}"),
        profile_reason=user.profile_reason,
    )


def _business(business: users.Business) -> pb.Business:
    return pb.Business(
        business_id=str(business.business_id),
        profile_business_id=str(profile_ids.business_id(business.business_id)),
        members=[pb.Member(user_id=str(member.user_id), role=role_to(member.role)) for member in business.members],
        create_time=timestamp(business.created_at),
        profile_status=pb.ProfileStatus.Value(f"PROFILE_STATUS_{business.profile_status.upper()}"),
        profile_reason=business.profile_reason,
    )


def _told(told: Told | None) -> pb.Business:
    if told is None:
        raise _no_business()
    business = _business(told.account)
    business.profile.CopyFrom(told.profile)
    return business


def _no_business() -> TandemError:
    return TandemError("there is no such business", reason=Reason.NOT_FOUND)


def _invitation(invitation: users.Invitation) -> pb.Invitation:
    return pb.Invitation(
        invitation_id=str(invitation.invitation_id),
        business_id=str(invitation.business_id),
        email=invitation.email,
        role=role_to(invitation.role),
        expire_time=timestamp(invitation.expires_at),
        accepted_by_user_id=str(invitation.accepted_by or ""),
    )
