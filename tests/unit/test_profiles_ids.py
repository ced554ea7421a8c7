"""How persons and businesses are named: a promise to every service and every language, so the vectors are fixed."""

from __future__ import annotations

import hashlib
from uuid import UUID

from tandem.profiles import NAMESPACE_IDENTITY, NAMESPACE_IDENTITY_BUSINESS, business_id, ids, person_id

ID = UUID("0190a5a0-0000-7000-8000-000000000001")


def test_the_vectors_in_the_manual_hold() -> None:
    """Names that were given once are found again by every later version, and the docstring doesn't lie."""
    assert person_id(ID) == UUID("fbb5a8e2-08cd-5482-90d2-c0cec28b830c")
    assert business_id(ID) == UUID("244ba046-4aa8-5617-a861-6d7bb1fb71ab")
    for name in (person_id(ID), business_id(ID)):
        assert f"{ID} " in (ids.__doc__ or "")
        assert str(name) in (ids.__doc__ or "")


def test_it_can_be_computed_by_hand() -> None:
    """Nothing but SHA-1 over the namespace's bytes and the id's lower-case text, as any language has it."""
    digest = bytearray(hashlib.sha1(NAMESPACE_IDENTITY.bytes + str(ID).encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    assert person_id(ID).bytes == bytes(digest)


def test_a_user_and_a_business_with_one_id_have_two_names() -> None:
    """The two kinds never collide."""
    assert NAMESPACE_IDENTITY != NAMESPACE_IDENTITY_BUSINESS
    assert person_id(ID) != business_id(ID)
