"""What the first update of an entity writes, where updates may create: the entity, its people, and an audit event each.

No transaction has staged these rows, so they name no coordinator; they are active at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as insert_into
from sqlalchemy.engine import Connection
from uuid_utils.compat import uuid7

from profiles_server import tables as t
from profiles_server.mapping import ROLES, Facts
from profiles_server.publishing import entity_id as entity_id_of
from tandem.profiles.v1 import business_pb2

NO_COORDINATOR = ""
"""Of a row that no transaction has made: no coordinator can be called so."""


def insert(
    connection: Connection,
    table: sa.Table,
    entity_id: UUID,
    facts: Facts,
    people: Sequence[business_pb2.BusinessRole],
    *,
    actor: str,
) -> bool:
    """Makes the entity, version 1, with a role for each of its people; False where its id is taken, active or prepared.

    Raises IntegrityError where another business has its registration number.
    """
    (key,) = table.primary_key.columns
    own = {"coordinator": NO_COORDINATOR, "transaction_id": uuid7(), "state": t.ACTIVE}
    entity = insert_into(table).values({**facts, key.name: entity_id, **own})
    # Whoever comes second waits for the first one's commit here, and then finds it.
    made = connection.execute(entity.on_conflict_do_nothing(index_elements=[key]).returning(table.c.version))
    if made.scalar_one_or_none() is None:
        return False
    events = [{"entity_kind": table.name, "entity_id": str(entity_id), "version": 1}]
    if people:
        roles = [
            {"business_id": entity_id, "person_id": UUID(one.person_id), "role": ROLES.word(one.role), **own}
            for one in people
        ]
        named = connection.execute(sa.insert(t.business_person).returning(entity_id_of(t.business_person)), roles)
        events += [
            {"entity_kind": t.business_person.name, "entity_id": name, "version": None} for name in named.scalars()
        ]
    connection.execute(sa.insert(t.audit_event), [{"actor": actor, "action": "created", **event} for event in events])
    return True
