"""The plug: persons, businesses and roles as what a transaction stages (tandem.participant.resource.Resource).

What a write is: `writes.py`. The statements: `staging.py` and `publishing.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any
from sqlalchemy.engine import Connection

from profiles_server import publishing
from profiles_server import tables as t
from profiles_server.staging import Asked, Obstacle, insert_prepared, lock_businesses, obstacles, over_quota
from profiles_server.writes import Claim, Content, read
from tandem.participant.resource import Accepted, HeldBy, Refused, Staged, Staging, Write
from tandem.runtime.errors import MAX_VIOLATIONS, InvalidRequest, Reason, Violation
from tandem.runtime.identifiers import TransactionKey


class ProfilesResource:
    """Creates persons, businesses and roles. Needs no state: everything is in the database it is given."""

    def parse(self, write: Any) -> Write:
        """One Person, Business (with its people) or BusinessPerson of tandem.profiles.v1."""
        content = read(write)
        return Write(content.rows, content)

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        """Three INSERTs for all, and a look at the holders where one of them skipped a row."""
        found: dict[TransactionKey, list[Obstacle]] = defaultdict(list)
        claims: dict[Claim, TransactionKey] = {}
        tried: list[Staging] = []
        deferred: list[Staging] = []
        for staging in sorted(stagings, key=lambda one: one.key):
            wrong = _named_twice(staging)
            if wrong:
                found[staging.key].append(Refused(InvalidRequest(wrong)))
                deferred.append(staging)
                continue
            mine = [claim for content in _contents(staging) for claim in content.claims]
            holder = next((claims[claim] for claim in mine if claim in claims), None)
            if holder is None:
                claims.update(dict.fromkeys(mine, staging.key))
                tried.append(staging)
            else:
                # Two of one batch want the same: the smaller id goes first, whatever the order of their keys, so that
                # they can't be in each other's way.
                found[staging.key].append(HeldBy(holder))
                deferred.append(staging)
        asked, waiting = _rows(tried), _rows(deferred)
        lock_businesses(connection, asked[t.business_person])
        missing = {table: insert_prepared(connection, table, asked[table]) for table in asked}
        for table, rows in missing.items():
            for key, obstacle in obstacles(connection, table, rows, never_tried=waiting[table]):
                found[key].append(obstacle)
        for key, obstacle in over_quota(connection, asked[t.business_person]):
            found[key].append(obstacle)
        return [_answer(found[one.key]) if one.key in found else Accepted() for one in stagings]

    def publish(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        """Makes them active, with an audit event a row."""
        return publishing.publish(connection, keys)

    def discard(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        """Deletes them."""
        return publishing.discard(connection, keys)


def _contents(staging: Staging) -> list[Content]:
    return [cast(Content, write.content) for write in staging.writes]


def _named_twice(staging: Staging) -> list[Violation]:
    """The claims of one transaction that it makes twice."""
    first: dict[Claim, str] = {}
    wrong = []
    for position, content in enumerate(_contents(staging)):
        for claim, path in content.claims.items():
            where = f"writes[{position}].{path}"
            if claim in first:
                wrong.append(Violation(where, f"is the same as {first[claim]}", "writes.unique"))
            first.setdefault(claim, where)
    return wrong[:MAX_VIOLATIONS]


def _rows(stagings: Sequence[Staging]) -> dict[sa.Table, list[Asked]]:
    """All rows by table, in the order in which the tables are written: a role needs its business."""
    rows: dict[sa.Table, list[Asked]] = {t.person: [], t.business: [], t.business_person: []}
    for one in stagings:
        contents = _contents(one)
        own = {row["business_id"] for content in contents for row in content.businesses}
        for position, content in enumerate(contents):
            rows[t.person] += [Asked(one.key, position, row) for row in content.persons]
            rows[t.business] += [Asked(one.key, position, row) for row in content.businesses]
            rows[t.business_person] += [
                Asked(one.key, position, row, with_business=row["business_id"] in own) for row in content.roles
            ]
    return rows


def _answer(obstacles: Sequence[Obstacle]) -> Obstacle:
    """The weightiest. Where something is there already, it names all that are, so that nobody has to ask for each anew:
    ids first, since whoever has made an entity before has its number, too.
    """
    refused = [one for one in obstacles if isinstance(one, Refused) and one.error.reason is Reason.ALREADY_EXISTS]
    if not refused:
        return min(obstacles, key=_weight)
    refused.sort(key=lambda one: one.error.metadata["field"] == "registration_number")
    there = dict.fromkeys(violation for one in refused for violation in one.error.violations)
    refused[0].error.violations = tuple(there)[:MAX_VIOLATIONS]
    return refused[0]


def _weight(obstacle: Obstacle) -> int:
    """A refusal that waiting can't change says most, one that a mere repeat may change says least."""
    if isinstance(obstacle, HeldBy):
        return 1
    return 2 if obstacle.error.reason is Reason.IN_PROGRESS else 0
