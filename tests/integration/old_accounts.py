"""Accounts from before there were profiles, for the tests of their migration."""

from __future__ import annotations

from uuid import UUID, uuid4

import sqlalchemy as sa

from identity_stub import tables as t
from tests.integration.test_identity_house import CANARY, Home, address

PERSON = {
    "given_name": CANARY,
    "family_name": "Pike",
    "birthday": "1901-02-03",
    "phone": "+442079460000",
    "city": "Leeds",
    "country": "GB",
}
BUSINESS = {
    "legal_name": f"{CANARY} & Sons",
    "industry": "Energy: coal",
    "incorporated": "1901",
    "street": f"1 {CANARY} Street",
    "city": "Leeds",
    "country": "United Kingdom",
    "website": "example.org",
}


def old_user(house: Home, *, status: str = "absent", **facts: str | None) -> UUID:
    """A user with these old columns, beside or instead of PERSON's."""
    user_id = uuid4()
    with house.identity.begin() as connection:
        connection.execute(
            sa.insert(t.users).values(user_id=user_id, email=address(), profile_status=status, **_old(PERSON, facts))
        )
    return user_id


def old_business(house: Home, owner: UUID, *, status: str = "absent", **facts: str | None) -> UUID:
    """A business that a user owns, with these old columns, beside or instead of BUSINESS's."""
    business_id = uuid4()
    with house.identity.begin() as connection:
        connection.execute(
            sa.insert(t.businesses).values(business_id=business_id, profile_status=status, **_old(BUSINESS, facts))
        )
        connection.execute(sa.insert(t.members).values(business_id=business_id, user_id=owner, role="owner"))
    return business_id


def _old(facts: dict[str, str], more: dict[str, str | None]) -> dict[str, str | None]:
    return {f"old_{name}": value for name, value in {**facts, **more}.items()}
