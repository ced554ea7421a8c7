"""Dual write's profiles: what everybody writes first. One create call, one local transaction, no protocol at all.

It takes the message of Prepare, so that the wire carries the same, and leaves the same rows as the product does: the
person, active, and its audit event. `python -m lab.bench.naive_profiles`.
"""

from __future__ import annotations

import grpc
import sqlalchemy as sa

from profiles_server import tables as t
from profiles_server.config import Settings
from profiles_server.writes import read
from tandem.runtime.config import load
from tandem.runtime.database import create_engine
from tandem.runtime.process import run_until_signal, spare_collector
from tandem.runtime.server import Server
from tandem.runtime.wire import key_from
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc


class Creates(participant_pb2_grpc.ParticipantServiceServicer):
    """Prepare is Create here."""

    Commit = Abort = BatchPrepare = BatchCommit = BatchAbort = GetTransaction = ListTransactions = None  # type: ignore[assignment]

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
        """Creates what is asked for, at once."""
        key = key_from(request.key).row()
        with self._engine.begin() as connection:
            for write in request.writes:
                for facts in read(write).persons:
                    connection.execute(sa.insert(t.person), {**facts, **key, "state": t.ACTIVE})
                    connection.execute(
                        sa.insert(t.audit_event),
                        {"actor": "naive", "action": "created", "entity_kind": "person",
                         "entity_id": facts["person_id"], "version": 1, **key},
                    )  # fmt: skip
        return pb.PrepareResponse()


def main() -> None:
    """Serves until it is told to stop."""
    settings = load(Settings)
    assert settings.database_url
    engine = create_engine(settings.database_url, pool_size=64)
    server = Server(settings.listen, workers=80)
    server.add(
        pb.DESCRIPTOR.services_by_name["ParticipantService"],
        Creates(engine),
        participant_pb2_grpc.add_ParticipantServiceServicer_to_server,
    )
    server.start()
    print(f"ready naive {server.address} metrics=none", flush=True)
    spare_collector()
    run_until_signal(lambda: server.drain(1))


if __name__ == "__main__":
    main()
