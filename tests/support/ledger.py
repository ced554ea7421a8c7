"""A toy ledger as a participant: accounts that are opened by transactions. Everything a service must write is here.

A write is a google.protobuf.Struct {"account": name, "amount": number}; account names are unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from google.protobuf.any_pb2 import Any
from google.protobuf.struct_pb2 import Struct
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from tandem.participant.resource import Accepted, HeldBy, Refused, Staged, Staging, Write
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.records import KEY_COLUMNS, key_arrays, records

account = sa.Table(
    "account",
    sa.MetaData(schema="ledger"),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.Column("coordinator", sa.Text, nullable=False),
    sa.Column("transaction_id", sa.Uuid, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
)
_keys = records("keys", KEY_COLUMNS)
_ours = (
    account.c.coordinator == _keys.c.coordinator,
    account.c.transaction_id == _keys.c.transaction_id,
    account.c.state == "prepared",
)


class Ledger:
    """The resource."""

    def parse(self, write: Any) -> Write:
        entry = Struct()
        if not write.Unpack(entry):
            raise InvalidRequest([Violation("type_url", "must be a Struct")], reason=Reason.UNKNOWN_TYPE)
        if not entry["account"]:
            raise InvalidRequest([Violation("value", "needs an account")])
        return Write(1, (str(entry["account"]), int(entry["amount"])))

    def stage(self, connection: Connection, stagings: Sequence[Staging]) -> Sequence[Staged]:
        rows = [
            {**s.key.row(), "name": write.content[0], "amount": write.content[1], "state": "prepared"}
            for s in stagings
            for write in s.writes
        ]
        theirs = (account.c.name, account.c.coordinator, account.c.transaction_id)
        statement = insert(account).on_conflict_do_nothing().returning(*theirs)
        ordered = sorted(rows, key=lambda row: str(row["name"]))
        done = {tuple(row) for row in connection.execute(statement.values(ordered))}
        names = [str(row["name"]) for row in rows]
        held = {row.name: row for row in connection.execute(sa.select(account).where(account.c.name.in_(names)))}
        answers: list[Staged] = []
        for s in stagings:
            answer: Staged = Accepted()
            for write in s.writes:
                name = write.content[0]
                if (name, s.key.coordinator, s.key.transaction_id) in done:
                    continue
                holder = held.get(name)
                if holder is not None and holder.state == "prepared":
                    answer = HeldBy(TransactionKey(holder.coordinator, holder.transaction_id))
                else:
                    answer = Refused(TandemError("the account exists", reason=Reason.ALREADY_EXISTS))
                    break
            answers.append(answer)
        return answers

    def publish(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        return self._end(connection, keys, sa.update(account).where(*_ours).values(state="active"))

    def discard(self, connection: Connection, keys: Sequence[TransactionKey]) -> Mapping[TransactionKey, int]:
        return self._end(connection, keys, sa.delete(account).where(*_ours))

    def _end(
        self, connection: Connection, keys: Sequence[TransactionKey], statement: sa.Update | sa.Delete
    ) -> Mapping[TransactionKey, int]:
        returning = statement.returning(account.c.coordinator, account.c.transaction_id)
        rows = connection.execute(returning, key_arrays("keys", keys))
        return Counter(TransactionKey(row.coordinator, row.transaction_id) for row in rows)
