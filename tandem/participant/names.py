"""Names that a participant's rows depend on may not change under them (R17)."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Engine

from tandem.participant.tables import participant, prepared_transaction
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.local_transaction import local_transaction


def check_names(engine: Engine, *, name: str, coordinators: Collection[str]) -> None:
    """To be called before a participant serves. Raises ConfigurationError.

    name: written down at the first start, and the same ever after: a decision names the participants it is for, so
    that one which asks under another name is told ABORTED, and would delete what is committed.
    coordinators: must hold those of all transactions in doubt, which could never be ended otherwise.
    """
    t = prepared_transaction
    with local_transaction(engine) as connection:
        connection.execute(insert(participant).values(one=True, name=name).on_conflict_do_nothing())
        written = connection.execute(sa.select(participant.c.name)).scalar_one()
        in_doubt = set(connection.execute(sa.select(t.c.coordinator).where(~t.c.confirmed).distinct()).scalars())
    if written != name:
        raise ConfigurationError(
            f"this database belongs to the participant {written!r}, not to {name!r}: configure that name, or another "
            "database"
        )
    unknown = sorted(in_doubt - set(coordinators))
    if unknown:
        raise ConfigurationError(
            f"transactions of {', '.join(unknown)} are in doubt here, and the configuration does not name "
            f"{'it' if len(unknown) == 1 else 'them'}: put {'it' if len(unknown) == 1 else 'them'} back among the "
            "coordinators until they are ended"
        )
