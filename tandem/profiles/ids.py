"""How persons and businesses are named. Any service can compute it, in any language, without asking anybody.

    person_id    UUIDv5( NAMESPACE_IDENTITY,          user_id )
    business_id  UUIDv5( NAMESPACE_IDENTITY_BUSINESS, identity's own business id )

UUIDv5 is RFC 9562's: SHA-1 over the namespace's 16 bytes and the name's bytes. The name is the id's usual text: 36
characters, lower case. Nothing here derives from personal data, and a name can't be turned back into a user id.

    user_id 0190a5a0-0000-7000-8000-000000000001     -> person_id   fbb5a8e2-08cd-5482-90d2-c0cec28b830c
    business id 0190a5a0-0000-7000-8000-000000000001 -> business_id 244ba046-4aa8-5617-a861-6d7bb1fb71ab
"""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid5

NAMESPACE_IDENTITY = UUID("29fbfd81-bb26-4392-8aaf-c6ab198878ae")
"""The namespace of user ids. Never changes: every stored name would be lost."""

NAMESPACE_IDENTITY_BUSINESS = uuid5(NAMESPACE_IDENTITY, "business")
"""The namespace of identity's business ids: another one, so that a user and a business with one id don't collide."""


def person_id(user_id: UUID) -> UUID:
    """The person of a user of identity."""
    return uuid5(NAMESPACE_IDENTITY, str(user_id))


def business_id(identity_business_id: UUID) -> UUID:
    """The business in profiles of a business of identity."""
    return uuid5(NAMESPACE_IDENTITY_BUSINESS, str(identity_business_id))
