"""What the driver raises fits the trailer of an answer, whoever else hands it on."""

from __future__ import annotations

from uuid import uuid4

from tandem.coordinator.errors import Refused
from tandem.runtime.errors import MAX_VIOLATIONS, InvalidRequest, Violation
from tandem.runtime.status import to_status


def test_a_refusal_by_many_is_bounded_and_keeps_each_ones_reason() -> None:
    """R16: Execute answers for up to sixteen participants, each with as many violations as it may name."""
    wrong = [
        Violation(f"writes[{n}].date_of_birth", "must be a full calendar date from 1850 on", "date.valid")
        for n in range(MAX_VIOLATIONS)
    ]
    refused = Refused({f"participant-{n}": InvalidRequest(wrong) for n in range(16)}, transaction_id=uuid4())
    assert len(refused.violations) == MAX_VIOLATIONS
    assert all(len(one.violations) == MAX_VIOLATIONS for one in refused.reasons.values())
    assert refused.message.endswith("; and 13 more")
    assert 2 * len(refused.message) + to_status(refused).ByteSize() < 8 * 1024
