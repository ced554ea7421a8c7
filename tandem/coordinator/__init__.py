"""The coordinator: the initiator's driver, its decision log, and the service that answers for its decisions.

How it is used: `help(tandem)`.
"""

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import (
    Fenced,
    LocalTransactionEnded,
    LocalTransactionOpen,
    LocalTransactionOwned,
    LocalTransactionRefused,
    OutcomeUnknown,
    Refused,
    TransactionError,
    TransactionExpired,
    TransactionReused,
    Unavailable,
)
from tandem.coordinator.gauges import CoordinatorGauges
from tandem.coordinator.handle import Batch, Transaction
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.servicer import RESERVED, CoordinatorServicer
from tandem.coordinator.tables import MIGRATIONS, grants
from tandem.coordinator.transaction import Outcome, Phase

__all__ = [
    "MIGRATIONS",
    "RESERVED",
    "Batch",
    "Coordinator",
    "CoordinatorGauges",
    "CoordinatorServicer",
    "DecisionLog",
    "Fenced",
    "LocalTransactionEnded",
    "LocalTransactionOpen",
    "LocalTransactionOwned",
    "LocalTransactionRefused",
    "Outcome",
    "OutcomeUnknown",
    "Phase",
    "Recovery",
    "Refused",
    "Transaction",
    "TransactionError",
    "TransactionExpired",
    "TransactionReused",
    "Unavailable",
    "grants",
]
