"""What every client of profiles needs, without a connection to it: `ids` computes how its entities are named."""

from tandem.profiles.ids import NAMESPACE_IDENTITY, NAMESPACE_IDENTITY_BUSINESS, business_id, person_id

__all__ = ["NAMESPACE_IDENTITY", "NAMESPACE_IDENTITY_BUSINESS", "business_id", "person_id"]
