"""The other control group: a sweeper that deletes by age, and asks nobody.

Run as profiles in its place: `python -m lab.torture.naive_profiles`.
"""

from __future__ import annotations

import sqlalchemy as sa

import profiles_server.app
from lab.torture.house import TTL_S
from profiles_server.cli import cli
from tandem.participant.participant import Participant
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import prepared_transaction as t
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.database import seconds
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction

AGE_S = TTL_S
"""Nobody deletes what is younger. Some outage is longer."""


class DeletesByAge(Sweeper):
    """Whatever has been prepared for longer than AGE_S is deleted."""

    def run_once(self) -> int:
        """How many were."""
        participant: Participant = self._resolver._participant
        old = sa.select(t.c.coordinator, t.c.transaction_id).where(
            t.c.state == State.PREPARED.value, t.c.prepared_at < sa.func.now() - seconds(AGE_S)
        )
        with local_transaction(self._engine) as connection:
            keys = [TransactionKey(row.coordinator, row.transaction_id) for row in connection.execute(old.limit(500))]
        return len(participant.abort(keys, ResolvedBy.SWEEPER)) if keys else 0


if __name__ == "__main__":
    vars(profiles_server.app)["Sweeper"] = DeletesByAge
    cli(prog_name="python -m lab.torture.naive_profiles")
