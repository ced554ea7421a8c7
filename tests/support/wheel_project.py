"""A project of somebody else's, who has installed the wheel: the `main.py` of tests/unit/test_wheel.py.

Its own packages are called `coordinator` and `protos`; `ledger` is tests/support/ledger.py.
sys.argv[1]: the URL of an empty database.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import sqlalchemy as sa
from google.protobuf.struct_pb2 import Struct
from ledger import Ledger, account
from prometheus_client import CollectorRegistry

import coordinator
import protos
import tandem
from tandem.coordinator import MIGRATIONS as LOG
from tandem.coordinator import Coordinator
from tandem.participant import MIGRATIONS, Participant, ParticipantMetrics, ParticipantServicer, Resolver
from tandem.runtime.database import create_engine
from tandem.runtime.server import Server
from tandem.runtime.times import Times

NOT_HERE = ("cli", "env")
"""What needs the extra `processes`, and what only Alembic runs."""

KAFKA = "tandem.kafka"
"""Its modules may need the extra `kafka`, and nothing else."""


def main() -> None:
    """Imports everything, then runs one transaction."""
    assert coordinator.MINE
    assert protos.MINE
    for module in pkgutil.walk_packages(tandem.__path__, "tandem."):
        if module.name.rpartition(".")[2] not in NOT_HERE:
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                assert module.name.startswith(KAFKA), module.name
                assert (error.name or "").startswith("confluent_kafka"), error.name

    engine = create_engine(sys.argv[1])
    for migrations in (LOG, MIGRATIONS):
        migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("ledger"))
        account.metadata.create_all(connection)
        connection.execute(sa.text("CREATE TABLE own (id uuid PRIMARY KEY)"))

    believed = {"identity": "127.0.0.1:1"}
    metrics = ParticipantMetrics(CollectorRegistry())
    participant = Participant(
        engine, name="ledger", resource=Ledger(), coordinators=believed, times=Times(), metrics=metrics
    )
    server = Server("127.0.0.1:0")
    ParticipantServicer(participant, Resolver(participant, believed)).add_to(server)
    server.start()
    initiator = Coordinator(engine, name="identity", participants={"ledger": server.address})
    write = Struct()
    write.update({"account": "ada", "amount": 1})
    with initiator.transaction({"ledger": [write]}) as tx:
        tx.connection.execute(sa.text("INSERT INTO own VALUES (:id)"), {"id": tx.id})
    with engine.connect() as connection:
        assert connection.execute(sa.select(account.c.name, account.c.state)).all() == [("ada", "active")]
        assert connection.execute(sa.text("SELECT id FROM own")).scalar_one() == tx.id
    initiator.close()
    server.drain(0)
    print("committed on both sides")


if __name__ == "__main__":
    main()
