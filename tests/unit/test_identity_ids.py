"""How accounts are named, and how a request is recognised: both are stored, so neither may ever change."""

from __future__ import annotations

from uuid import UUID

from identity_stub import ids
from identity_stub.requests import content_hash
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.profiles.v1 import person_pb2


def test_names_never_change() -> None:
    """The same caller and request id give the same names, in every version of this code."""
    assert ids.user_id("anonymous", "request-1") == UUID("0c6f4d86-ad4f-5f87-8d14-2c3a2a22ee12")
    assert ids.business_id("anonymous", "request-1") == UUID("9b3989a0-91c5-547a-bae6-12f3ee473cb2")
    assert ids.invitation_id("anonymous", "request-1") == UUID("56c47c65-1993-59b9-865f-e95dbb0d37e0")


def test_callers_do_not_meet() -> None:
    """Two callers with the same request id have names of their own, and so have the three kinds."""
    makers = (ids.user_id, ids.business_id, ids.invitation_id)
    assert len({make(caller, "request-1") for make in makers for caller in ("anonymous", "spiffe://a/b")}) == 6


def test_without_a_request_id_names_are_random() -> None:
    """There is nothing to meet again."""
    assert ids.user_id("anonymous", "") != ids.user_id("anonymous", "")
    assert ids.user_id("anonymous", "").version == 4


def test_a_request_is_its_content() -> None:
    """The hash leaves the request id out, takes in all else, and never changes."""
    request = pb.CreateUserRequest(
        request_id="1", email="a@example.org", person=person_pb2.Person(name=person_pb2.PersonName(display_name="A"))
    )
    first = content_hash(request)
    assert first.hex() == "28b8335e54141a09054a3b9581f05bdf4fa028daea4b984056e69ca0e2fb41a6"
    request.request_id = "2"
    assert content_hash(request) == first
    request.person.name.suffix = "Jr."
    assert content_hash(request) != first
