"""How accounts are named: by the caller and its request id, so that a repeated request meets its own earlier attempt.

    user_id      UUIDv5( UUIDv5( NAMESPACE_USER,       caller ), request_id )
    business_id  UUIDv5( UUIDv5( NAMESPACE_BUSINESS,   caller ), request_id )     identity's own, not the profile's
    invitation   UUIDv5( UUIDv5( NAMESPACE_INVITATION, caller ), request_id )

Two callers may use the same request id. Without a request id there is nothing to meet again: UUIDv4. None of this
derives from personal data; the names of the profiles derive from these ids (`tandem.profiles.ids`).
"""

from __future__ import annotations

from uuid import UUID, uuid4, uuid5

NAMESPACE_USER = UUID("7d0c7a4e-4f0b-4e0e-9d57-6d9d6a3b1f52")
"""Never changes: a request that is repeated over an upgrade must find itself."""

NAMESPACE_BUSINESS = uuid5(NAMESPACE_USER, "business")
NAMESPACE_INVITATION = uuid5(NAMESPACE_USER, "invitation")


def user_id(caller: str, request_id: str) -> UUID:
    """The user that this request makes. request_id: "" for none."""
    return _named(NAMESPACE_USER, caller, request_id)


def business_id(caller: str, request_id: str) -> UUID:
    """The business (account) that this request makes. request_id: "" for none."""
    return _named(NAMESPACE_BUSINESS, caller, request_id)


def invitation_id(caller: str, request_id: str) -> UUID:
    """The invitation that this request makes. request_id: "" for none."""
    return _named(NAMESPACE_INVITATION, caller, request_id)


def _named(namespace: UUID, caller: str, request_id: str) -> UUID:
    return uuid5(uuid5(namespace, caller), request_id) if request_id else uuid4()
