"""Which requests import the rows, in which order. Pure.

The first min(persons, businesses) pairs sign up together, the rest follow: further persons alone, further businesses
for the persons in turn. Request ids are those of the rows, so that a repeated import meets itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from identity_stub.importing.reading import BusinessRow, PersonRow, Rejected


@dataclass(frozen=True, slots=True)
class Job:
    """One pair, or one alone.

    person: None for a further business of the person of job `owner`. after: jobs that must have ended before, by their
    position; all of them are earlier ones.
    """

    person: PersonRow | None
    business: BusinessRow | None
    owner: int | None = None
    after: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """As an operator calls it."""
        return " / ".join(row.name for row in (self.person, self.business) if row is not None)

    @property
    def request_id(self) -> str:
        """Of its first call."""
        if self.person is not None:
            return f"import-persons-{self.person.key}"
        assert self.business is not None
        return f"import-businesses-{self.business.key}"

    @property
    def in_company(self) -> bool:
        """Whether it may go together with others: a pair that waits for nobody."""
        return self.person is not None and self.business is not None and not self.after


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs in order, and the rows that none of them imports: (file's name, row)."""

    jobs: Sequence[Job]
    rejected: Sequence[tuple[str, Rejected]] = ()

    @property
    def persons(self) -> int:
        """How many persons it imports."""
        return sum(job.person is not None for job in self.jobs)

    @property
    def businesses(self) -> int:
        """How many businesses it imports, if none is refused."""
        return sum(job.business is not None for job in self.jobs)


def plan(persons: Sequence[PersonRow | Rejected], businesses: Sequence[BusinessRow | Rejected]) -> Plan:
    """The plan for what was read. Businesses without any person to own them are rejected."""
    good_persons = [row for row in persons if not isinstance(row, Rejected)]
    good_businesses = [row for row in businesses if not isinstance(row, Rejected)]
    rejected = [("persons", row) for row in persons if isinstance(row, Rejected)]
    rejected += [("businesses", row) for row in businesses if isinstance(row, Rejected)]
    if not good_persons:
        rejected += [("businesses", Rejected(row.line, "there is no person to own it")) for row in good_businesses]
        return Plan([], rejected)

    jobs: list[Job] = []
    # Two share classes are one company: who comes first in the file wins, however many clients run.
    last_of: dict[str, int] = {}
    for position, business in enumerate(good_businesses):
        number = business.profile.registration_number
        before = (last_of[number],) if number in last_of else ()
        last_of[number] = position
        if position < len(good_persons):
            jobs.append(Job(good_persons[position], business, after=before))
        else:
            owner = position % len(good_persons)
            jobs.append(Job(None, business, owner, after=(owner, *before)))
    jobs += [Job(person, None) for person in good_persons[len(good_businesses) :]]
    return Plan(jobs, rejected)


def batches(jobs: Sequence[Job], most: int) -> Iterator[Sequence[int]]:
    """The positions of jobs that go together, at most `most`, in order; the other jobs go alone."""
    together: list[int] = []
    for position, job in enumerate(jobs):
        if together and (not job.in_company or len(together) == most):
            yield together
            together = []
        if job.in_company:
            together.append(position)
        else:
            yield [position]
    if together:
        yield together
