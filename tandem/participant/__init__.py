"""The participant: makes any service one that can stage writes for a transaction and later publish or discard them.

A service writes a `Resource`, wraps it in a `Participant`, serves it by `ParticipantServicer` and runs a `Sweeper`.
Nothing here knows what the writes are. How it is used: `help(tandem)`.
"""

from tandem.participant.gauges import ParticipantGauges
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.names import check_names
from tandem.participant.operations_servicer import OperationsServicer
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.resource import Accepted, HeldBy, Refused, Resource, Staged, Staging, Write
from tandem.participant.servicer import RESERVED, ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import MIGRATIONS

__all__ = [
    "MIGRATIONS",
    "RESERVED",
    "Accepted",
    "HeldBy",
    "OperationsServicer",
    "Participant",
    "ParticipantGauges",
    "ParticipantMetrics",
    "ParticipantServicer",
    "Refused",
    "Resolver",
    "Resource",
    "Staged",
    "Staging",
    "Sweeper",
    "Write",
    "check_names",
]
