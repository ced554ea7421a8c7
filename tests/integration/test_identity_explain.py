"""explain against real rows on both sides: one signup in each situation it can be in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from uuid_utils.compat import uuid7

from identity_stub.explain import Sources, explain
from tandem.coordinator.participants import Participants
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.profiles.v1 import business_pb2, person_pb2
from tests.integration.test_identity_house import (
    CANARY,
    Home,
    address,
    create_user,
    fresh,
    home,
    invitation_of,
    person,
    sign_up,
)


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[Home]:
    with home(new_database) as made:
        yield made


@pytest.fixture
def sources(house: Home) -> Sources:
    return Sources(house.identity, house.coordinator.log, house.coordinator.participants, "identity")


def told(sources: Sources, asked: object) -> str:
    """The one story of what is asked for, which names nobody."""
    (story,) = explain(sources, str(asked))
    text = "\n".join(story.sentences())
    assert CANARY not in text + repr(story), "personal data in a story"
    return text


def test_committed(house: Home, sources: Sources) -> None:
    """The same story by address, user id, request id and transaction id."""
    request = sign_up(request_id=fresh())
    user = house.stub.SignUp(request).user
    transaction_id = house.transaction_of(request.request_id)
    house.marked(transaction_id)
    for asked in (request.email, request.email.upper(), user.user_id, request.request_id, transaction_id):
        text = told(sources, asked)
        assert f"request {request.request_id} of anonymous" in text
        assert f"identity/{transaction_id}" in text
        assert "committed, in the same local commit as its account" in text
        assert "profiles staged 3 rows" in text
        assert "brought by the initiator's own driver" in text
        assert text.endswith("Nothing is left to do.")


def test_without_a_request_id(house: Home, sources: Sources) -> None:
    """A request that gave no id has a story, too."""
    user = house.stub.CreateUser(create_user()).user
    house.marked()
    text = told(sources, user.user_id)
    assert "CreateUser, request without an id of anonymous" in text
    assert text.endswith("Nothing is left to do.")


def test_undelivered(house: Home, sources: Sources) -> None:
    """Decided, but nobody has brought the Commit: who will, and when."""
    request = sign_up(request_id=fresh())
    house.undelivered(request)
    text = told(sources, request.request_id)
    assert "profiles holds 3 rows prepared since" in text
    assert "profiles has not acknowledged it: recovery delivers it" in text
    assert "A reader who meets it there makes it visible at once" in text
    house.sql("UPDATE twophase.decision SET next_attempt_at = now() WHERE undelivered <> '{}'")
    house.recovery.run_once()
    text = told(sources, request.request_id)
    assert "brought by recovery." in text
    assert text.endswith("Nothing is left to do.")


def test_in_doubt_then_aborted(house: Home, sources: Sources) -> None:
    """Prepared by an initiator that died: first what will end it, then how it ended."""
    transaction_id = house.coordinator.prepare({"profiles": [person(person_id=str(uuid7()))]}).id
    text = told(sources, transaction_id)
    assert "No decision was written for it: it is not committed." in text
    assert "profiles holds 1 row prepared since" in text
    assert "The sweeper there asks for the decision from" in text
    assert house.sweep() >= 1
    text = told(sources, transaction_id)
    assert "aborted, so that it can never commit" in text
    assert "discarded them" in text
    assert "brought by the sweeper there." in text
    assert text.endswith("Nothing is left to do.")


def test_unreachable(house: Home, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """A participant that does not answer leaves the rest of the story as it is."""
    monkeypatch.setattr("identity_stub.explain.ASK_S", 0.3)
    request = create_user(request_id=fresh())
    house.stub.CreateUser(request)
    house.marked()
    away = Participants({"profiles": "127.0.0.1:1"})
    text = told(replace(sources, participants=away), request.request_id)
    away.close()
    assert "profiles could not be asked what it holds (" in text
    assert text.endswith("Nothing is left to do.")
    nobody = told(replace(sources, participants=Participants({"other": "127.0.0.1:1"})), request.request_id)
    assert "it is not in the configuration" in nobody


def test_unknown(sources: Sources) -> None:
    """What nobody knows, and what that means."""
    assert told(sources, address()).startswith("No user has this address.")
    assert told(sources, fresh()).startswith("No user and no request that succeeded has this id.")
    text = told(sources, "0190a5a0-0000-7000-8000-000000000000")
    assert "older than decisions are kept" in text
    text = told(sources, uuid7())
    assert "This transaction belongs to no request that succeeded here." in text
    assert "No decision was written" in text
    assert "profiles knows nothing of it." in text


def test_without_a_transaction(house: Home, sources: Sources) -> None:
    """An invitation is identity's own affair; accepting it is not."""
    owner = house.stub.SignUp(sign_up())
    inviting = invitation_of(owner, request_id=fresh(), role=business_pb2.ROLE_SECRETARY)
    invitation = house.stub.InviteUser(inviting).invitation
    text = told(sources, inviting.request_id)
    assert f"it succeeded and stands for the invitation {invitation.invitation_id}." in text
    assert "No other service took part" in text
    accepting = pb.AcceptInvitationRequest(
        invitation_id=invitation.invitation_id, person=person_pb2.Person(name={"display_name": "Somebody"})
    )
    user = house.stub.AcceptInvitation(accepting).user
    assert "AcceptInvitation" in told(sources, user.user_id)
