"""The plug of profiles on a real PostgreSQL: staging, publishing, discarding, and who is in whose way."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from profiles_server import reading
from tandem.participant.participant import MAX_ROWS, Ask, HeldByAnother, Participant, Yes
from tandem.participant.resource import Accepted, HeldBy, Refused, Staged, Staging
from tandem.profiles.v1 import business_pb2
from tandem.runtime.errors import MAX_VIOLATIONS, InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tests.integration.profiles_support import (
    BY,
    RESOURCE,
    ask,
    business,
    create,
    new_key,
    people,
    person,
    random_business,
    random_person,
    registered,
    relation,
    rows,
    staging,
)

pytest_plugins = ["tests.integration.profiles_fixtures"]

ENTITIES = """
    SELECT 'person' AS kind, state, count(*) FROM profiles.person WHERE transaction_id = :id GROUP BY state
    UNION ALL SELECT 'business', state, count(*) FROM profiles.business WHERE transaction_id = :id GROUP BY state
    UNION ALL SELECT 'role', state, count(*) FROM profiles.business_person WHERE transaction_id = :id GROUP BY state
    ORDER BY 1
"""


MORE_PEOPLE = """
    INSERT INTO profiles.business_person (business_id, person_id, role, state, coordinator, transaction_id)
    SELECT :id, gen_random_uuid(), 'director', 'active', :coordinator, :transaction FROM generate_series(1, 998)
"""


def entities(engine: Engine, key: TransactionKey) -> list[tuple[object, ...]]:
    """(kind, state, how many) of what a transaction has."""
    with engine.connect() as connection:
        return rows(connection, ENTITIES, id=key.transaction_id)


def stage(engine: Engine, *stagings: Staging) -> list[Staged]:
    """One local transaction that commits what was staged."""
    with local_transaction(engine) as connection:
        return list(RESOURCE.stage(connection, stagings))


def verdict(staged: Staged | Yes | TandemError) -> tuple[object, ...]:
    """An answer, comparable: refusals by reason and field."""
    match staged:
        case Refused(error):
            return (error.reason, error.metadata.get("field"))
        case HeldBy(key):
            return (HeldBy, key)
        case TandemError():
            return (staged.reason, staged.metadata.get("field"))
        case _:
            return (type(staged),)


# --- one transaction ------------------------------------------------------------------------------------------


def test_staged_published_once(profiles_engine: Engine) -> None:
    """Prepared rows become active, the count is exact, a repeat publishes nothing."""
    asked = staging(
        person(),
        business(people=people(business_pb2.ROLE_OWNER, business_pb2.ROLE_DIRECTOR)),
    )
    assert sum(write.rows for write in asked.writes) == 4
    assert stage(profiles_engine, asked) == [Accepted()]
    prepared = [("business", "prepared", 1), ("person", "prepared", 1), ("role", "prepared", 2)]
    assert entities(profiles_engine, asked.key) == prepared
    with local_transaction(profiles_engine) as connection:
        assert RESOURCE.publish(connection, [asked.key, new_key()]) == {asked.key: 4}
        assert RESOURCE.publish(connection, [asked.key]) == {}
        assert RESOURCE.discard(connection, [asked.key]) == {}
    assert entities(profiles_engine, asked.key) == [
        ("business", "active", 1),
        ("person", "active", 1),
        ("role", "active", 2),
    ]


def test_a_transaction_stages_so_many_rows_at_most(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R16: whoever ends it has to change them all in one local transaction."""
    crowded = [registered(people=people(*[business_pb2.ROLE_OWNER] * 100)) for _ in range(101)]
    fits, too_many = ask(*crowded[:100]), ask(*crowded)
    assert sum(1 + len(one.people) for one in crowded[:100]) == MAX_ROWS
    votes = profiles_participant.prepare([too_many, fits])
    assert [verdict(vote) for vote in votes] == [(Reason.MESSAGE_TOO_LARGE, None), (Yes,)]
    assert entities(profiles_engine, too_many.key) == []
    assert profiles_participant.abort([fits.key], BY) == [None]


def test_discarded_without_a_trace(profiles_engine: Engine) -> None:
    """Discarding deletes exactly the transaction's rows, the neighbours' stay, and the names are free again."""
    ada, engines = person(), registered(people=people(business_pb2.ROLE_OWNER))
    first, neighbour = staging(ada, engines), staging(person())
    assert stage(profiles_engine, first, neighbour) == [Accepted(), Accepted()]
    with local_transaction(profiles_engine) as connection:
        assert RESOURCE.discard(connection, [first.key]) == {first.key: 3}
        assert RESOURCE.discard(connection, [first.key]) == {}
    assert entities(profiles_engine, first.key) == []
    assert entities(profiles_engine, neighbour.key) == [("person", "prepared", 1)]
    assert stage(profiles_engine, staging(ada, engines)) == [Accepted()]


def test_what_is_published_is_in_the_audit_without_personal_data(
    profiles_engine: Engine, profiles_participant: Participant
) -> None:
    """One event a row: who, what, which entity, which version, which transaction, and nothing about the person."""
    mark = uuid4().hex
    ada = person(email_addresses=[f"{mark}@example.com"])
    ada.name.display_name = mark
    engines = business(
        legal_name=mark, people=[business_pb2.BusinessRole(person_id=ada.person_id, role=business_pb2.ROLE_OWNER)]
    )
    key = create(profiles_participant, ada, engines)
    with profiles_engine.connect() as connection:
        found = rows(
            connection,
            "SELECT actor, action, entity_kind, entity_id, version, coordinator FROM profiles.audit_event "
            "WHERE transaction_id = :id ORDER BY entity_kind",
            id=key.transaction_id,
        )
        assert found == [
            ("coordinator:identity", "created", "business", engines.business_id, 1, "identity"),
            (
                "coordinator:identity",
                "created",
                "business_person",
                f"{engines.business_id}/{ada.person_id}/owner",
                None,
                "identity",
            ),
            ("coordinator:identity", "created", "person", ada.person_id, 1, "identity"),
        ]
        text = rows(
            connection, "SELECT count(*) FROM profiles.audit_event e WHERE e::text LIKE :mark", mark=f"%{mark}%"
        )
        assert text == [(0,)]


@pytest.mark.parametrize("change", ["UPDATE {} SET actor = ''", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_audit_is_append_only(profiles_engine: Engine, change: str) -> None:
    """Not even by mistake: the database refuses."""
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), profiles_engine.begin() as connection:
        connection.exec_driver_sql(change.format("profiles.audit_event"))


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_on_the_way_to_the_rows_and_back(
    profiles_engine: Engine, profiles_participant: Participant, seed: int
) -> None:
    """Any valid person and business, in any script, read back from the database as it was written, at version 1."""
    chance = random.Random(seed)
    persons = [random_person(chance) for _ in range(40)]
    businesses = [random_business(chance) for _ in range(40)]
    asks = [ask(*pair) for pair in zip(persons, businesses, strict=True)]
    votes = profiles_participant.prepare(asks)
    assert {verdict(vote) for vote in votes} == {(Yes,)}
    assert profiles_participant.commit([each.key for each in asks], BY) == [None] * 40
    found = reading.persons(profiles_engine, [UUID(p.person_id) for p in persons])
    assert not found.prepared
    for one in persons:
        one.version = 1
        assert found.active[UUID(one.person_id)] == one
    found_businesses = reading.businesses(profiles_engine, [UUID(b.business_id) for b in businesses])
    for other in businesses:
        other.version = 1
        assert found_businesses.active[UUID(other.business_id)] == other


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"year": 1999}, "1999"),
        ({"year": 1999, "month": 2}, "1999-02"),
        ({"year": 1999, "month": 2, "day": 3}, "1999-02-03"),
    ],
)
def test_a_date_is_stored_as_exactly_as_it_is_known(
    profiles_engine: Engine, profiles_participant: Participant, fields: dict[str, int], expected: str
) -> None:
    """A year alone stays a year alone."""
    one = business()
    one.incorporation_date.MergeFrom(type(one.incorporation_date)(**fields))
    create(profiles_participant, one)
    with profiles_engine.connect() as connection:
        statement = "SELECT incorporation_date FROM profiles.business WHERE business_id = CAST(:id AS uuid)"
        assert rows(connection, statement, id=one.business_id) == [(expected,)]


# --- who is in whose way --------------------------------------------------------------------------------------


def test_what_an_active_row_holds_is_refused(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R8: ids, registrations and roles; the field is named and nothing else is."""
    ada, engines = person(), registered()
    owner = relation(engines.business_id)
    create(profiles_participant, ada, engines, owner)
    answers = stage(
        profiles_engine,
        staging(person(person_id=ada.person_id)),
        staging(business(business_id=engines.business_id)),
        staging(registered(engines.registration_number)),
        staging(owner),
        staging(person(), registered()),
    )
    assert [verdict(answer) for answer in answers] == [
        (Reason.ALREADY_EXISTS, "person_id"),
        (Reason.ALREADY_EXISTS, "business_id"),
        (Reason.ALREADY_EXISTS, "registration_number"),
        (Reason.ALREADY_EXISTS, "role"),
        (Accepted,),
    ]
    assert isinstance(answers[2], Refused)
    assert engines.registration_number not in repr((answers[2].error, answers[2].error.metadata))


def test_all_that_active_rows_hold_is_named_at_once(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """So that nobody has to take one write out and ask for the next one. At most MAX_VIOLATIONS are named."""
    ada, taken = person(), [registered() for _ in range(MAX_VIOLATIONS + 5)]
    create(profiles_participant, ada, *taken)
    numbers = [one.registration_number for one in taken]
    some = [person(), registered(numbers[0]), person(person_id=ada.person_id), registered(), registered(numbers[1])]
    answer, many = stage(
        profiles_engine, staging(*some), staging(person(), *(registered(number) for number in numbers))
    )
    assert isinstance(answer, Refused)
    assert {(one.field, one.rule) for one in answer.error.violations} == {
        ("writes[1].registration_number", "unique"),
        ("writes[2].person_id", "unique"),
        ("writes[4].registration_number", "unique"),
    }
    assert isinstance(many, Refused)
    assert len({one.field for one in many.error.violations}) == MAX_VIOLATIONS


def test_ids_are_named_before_numbers(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """Who has made the entities before has their numbers, too: that they are there says more, and comes in any case."""
    there = [registered() for _ in range(MAX_VIOLATIONS + 5)]
    create(profiles_participant, *there)
    (answer,) = stage(profiles_engine, staging(*there))
    assert verdict(answer) == (Reason.ALREADY_EXISTS, "business_id")
    assert isinstance(answer, Refused)
    assert {one.field.rpartition(".")[2] for one in answer.error.violations} == {"business_id"}


def test_what_a_prepared_row_holds_is_held(profiles_engine: Engine) -> None:
    """R8, R10: nobody can know yet, and the answer names the holder so that it can be asked for."""
    ada, engines = person(), registered()
    owner = relation(engines.business_id)
    holder = staging(ada, engines, owner)
    assert stage(profiles_engine, holder) == [Accepted()]
    answers = stage(
        profiles_engine,
        staging(person(person_id=ada.person_id)),
        staging(business(business_id=engines.business_id)),
        staging(registered(engines.registration_number)),
        staging(relation(engines.business_id)),
        staging(person()),
    )
    assert answers == [HeldBy(holder.key)] * 4 + [Accepted()]


def test_the_same_registration_in_another_country_is_another_one(profiles_engine: Engine) -> None:
    """Unique is the pair; businesses without a registration are never in each other's way."""
    first, second = registered("123"), registered("123")
    second.registration_country = "FR"
    assert (
        stage(profiles_engine, staging(first), staging(second), staging(business()), staging(business()))
        == [Accepted()] * 4
    )


def test_a_refusal_says_more_than_a_holder(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """Waiting for a holder is in vain where another write of the same transaction is refused anyway."""
    ada = person()
    create(profiles_participant, ada)
    held = person()
    assert stage(profiles_engine, staging(held)) == [Accepted()]
    (answer,) = stage(profiles_engine, staging(held, person(person_id=ada.person_id)))
    assert verdict(answer) == (Reason.ALREADY_EXISTS, "person_id")


def test_one_transaction_may_not_want_the_same_twice(profiles_engine: Engine) -> None:
    """The two writes are named, and nothing of the transaction is staged."""
    ada, engines, owner = person(), registered(), str(uuid4())
    engines.people.add(person_id=owner, role=business_pb2.ROLE_OWNER)
    cases: list[tuple[Staging, str]] = [
        (staging(ada, person(person_id=ada.person_id.upper())), "writes[1].person_id"),
        (staging(engines, business(business_id=engines.business_id)), "writes[1].business_id"),
        (staging(engines, registered(engines.registration_number)), "writes[1].registration_number"),
        (staging(ada, engines, relation(engines.business_id, person_id=owner)), "writes[2].role"),
    ]
    answers = stage(profiles_engine, *(case for case, _ in cases), staging(ada))
    for answer, (case, field) in zip(answers, cases, strict=False):
        assert isinstance(answer, Refused)
        assert [violation.field for violation in answer.error.violations] == [field]
        assert answer.error.reason is Reason.INVALID_REQUEST
        assert entities(profiles_engine, case.key) == []
    assert answers[-1] == Accepted()


def test_what_is_wanted_twice_and_taken_already_is_told_as_taken(
    profiles_engine: Engine, profiles_participant: Participant
) -> None:
    """To want it once would be in vain, too; and all of them are named."""
    taken, ada = registered(), person()
    create(profiles_participant, taken)
    number = taken.registration_number
    (answer,) = stage(profiles_engine, staging(ada, registered(number), registered(number), ada))
    assert verdict(answer) == (Reason.ALREADY_EXISTS, "registration_number")
    assert isinstance(answer, Refused)
    fields = {one.field for one in answer.error.violations}
    assert fields == {"writes[1].registration_number", "writes[2].registration_number"}


def test_at_most_so_much_that_is_wanted_twice_is_named(profiles_engine: Engine) -> None:
    """R16: an error must fit the trailer of an answer."""
    one = registered()
    (answer,) = stage(
        profiles_engine, staging(one, *(registered(one.registration_number) for _ in range(MAX_VIOLATIONS + 5)))
    )
    assert isinstance(answer, Refused)
    assert len(answer.error.violations) == MAX_VIOLATIONS


def test_of_two_in_one_batch_exactly_one_is_accepted(
    profiles_engine: Engine, profiles_participant: Participant
) -> None:
    """Whatever they share, and in whatever order the batch comes; the other is told who holds it and leaves nothing."""
    ada, number = person(), uuid4().hex[:8].upper()
    for pair in (
        ([person(person_id=ada.person_id)], [person(person_id=ada.person_id)]),
        ([registered(number)], [registered(number)]),
        ([person(), registered(number[::-1])], [registered(number[::-1]), person()]),
    ):
        asks = [ask(*writes) for writes in pair]
        votes = profiles_participant.prepare(asks[::-1])[::-1]
        assert [verdict(vote) for vote in votes] == [(Yes,), (Reason.HELD, None)]
        assert isinstance(votes[1], TandemError)
        assert votes[1].metadata["held_by_transaction_id"] == str(asks[0].key.transaction_id)
        assert entities(profiles_engine, asks[0].key)
        assert not entities(profiles_engine, asks[1].key)


def test_two_of_one_batch_are_not_in_each_others_way_crosswise(profiles_participant: Participant) -> None:
    """Two unique keys have no common order: here each would get one of the two and nobody both. The smaller id wins."""
    ids = sorted(str(uuid4()) for _ in range(2))
    ada = person()
    number = uuid4().hex[:8].upper()
    first = ask(person(person_id=ada.person_id), registered(number, business_id=ids[1]))
    second = ask(person(person_id=ada.person_id), registered(number, business_id=ids[0]))
    votes = profiles_participant.prepare([second, first])
    assert [verdict(vote) for vote in votes] == [(Reason.HELD, None), (Yes,)]


def test_what_a_refused_neighbour_wanted_is_free(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """A no vote leaves nothing, so a transaction of the same batch that wanted the same is accepted."""
    taken, ada = person(), person()
    create(profiles_participant, taken)
    refused, waiting = ask(ada, person(person_id=taken.person_id)), ask(ada)
    votes = profiles_participant.prepare([refused, waiting])
    assert [verdict(vote) for vote in votes] == [(Reason.ALREADY_EXISTS, "person_id"), (Yes,)]
    assert entities(profiles_engine, refused.key) == []
    assert profiles_participant.commit([waiting.key], BY) == [None]


def test_a_deferred_neighbour_is_still_refused_for_what_is_active(
    profiles_engine: Engine, profiles_participant: Participant
) -> None:
    """Also in a batch: a refusal says more than that a neighbour holds something."""
    taken, ada = person(), person()
    create(profiles_participant, taken)
    answers = stage(profiles_engine, staging(ada), staging(ada, person(person_id=taken.person_id)))
    assert [verdict(answer) for answer in answers] == [(Accepted,), (Reason.ALREADY_EXISTS, "person_id")]


# --- roles ----------------------------------------------------------------------------------------------------


def test_a_role_needs_its_business(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R8: active, or staged by the same transaction in any order; held if another one stages it; else refused."""
    active, staged, own = business(), business(), business()
    create(profiles_participant, active)
    holder = staging(staged)
    assert stage(profiles_engine, holder) == [Accepted()]
    answers = stage(
        profiles_engine,
        staging(relation(active.business_id), relation(active.business_id)),
        staging(relation(own.business_id), own),
        staging(relation(staged.business_id)),
        staging(relation(str(uuid4()))),
    )
    assert [verdict(answer) for answer in answers] == [
        (Accepted,),
        (Accepted,),
        (HeldBy, holder.key),
        (Reason.REFUSED, "business_id"),
    ]


def test_a_role_in_a_business_of_the_same_batch(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """Another transaction's business is not there before it is committed, even if both are prepared together."""
    ours, theirs = business(), business()
    ours_key, theirs_key = new_key(), new_key()
    votes = profiles_participant.prepare(
        [ask(ours, key=ours_key), ask(theirs, key=theirs_key), ask(relation(ours.business_id))]
    )
    assert [verdict(vote) for vote in votes] == [(Yes,), (Yes,), (Reason.HELD, None)]
    assert profiles_participant.commit([ours_key], BY) == [None]
    assert profiles_participant.abort([theirs_key], BY) == [None]
    votes = profiles_participant.prepare([ask(relation(ours.business_id)), ask(relation(theirs.business_id))])
    assert [verdict(vote) for vote in votes] == [(Yes,), (Reason.REFUSED, "business_id")]


def test_a_read_names_what_is_prepared(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R10's first half: prepared entities and relations are invisible, and the transactions met are told."""
    active, staged = business(), business(people=people(business_pb2.ROLE_OWNER))
    create(profiles_participant, active)
    holder, adding = staging(staged, one := person()), staging(relation(active.business_id))
    assert stage(profiles_engine, holder, adding) == [Accepted(), Accepted()]
    ids = [UUID(active.business_id), UUID(staged.business_id)]
    found = reading.businesses(profiles_engine, ids)
    assert list(found.active) == ids[:1]
    assert not found.active[ids[0]].people
    assert found.prepared == {ids[0]: frozenset([adding.key]), ids[1]: frozenset([holder.key])}
    persons = reading.persons(profiles_engine, [UUID(one.person_id)])
    assert (persons.active, persons.prepared) == ({}, {UUID(one.person_id): frozenset([holder.key])})


# --- at the same time -----------------------------------------------------------------------------------------


def race(participant: Participant, first: Ask, second: Ask) -> list[Yes | TandemError]:
    """Two Prepares at the same moment."""
    barrier = threading.Barrier(2)

    def vote(asked: Ask) -> Yes | TandemError:
        barrier.wait(10)
        (answer,) = participant.prepare([asked])
        return answer

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(vote, [first, second]))


def test_two_threads_in_opposite_orders(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """200 rounds of overlapping writes, each side in the opposite order: exactly one gets what both want, nothing of
    a no vote stays, and what was promised is published to the last row."""
    wins: Counter[int] = Counter()
    winners, losers = [], []
    for _ in range(200):
        persons = [person() for _ in range(3)]
        firms = [registered() for _ in range(3)]
        # The second one's businesses have the first one's numbers under other ids of the first one's.
        others = [registered(firms[n].registration_number, business_id=firms[n - 1].business_id) for n in range(3)]
        asks = [ask(*persons, *firms), ask(*reversed(others), *reversed(persons))]
        votes = race(profiles_participant, *asks)
        winner = 0 if isinstance(votes[0], Yes) else 1
        wins[winner] += 1
        assert [verdict(votes[winner]), verdict(votes[1 - winner])] == [(Yes,), (Reason.HELD, None)]
        winners.append(asks[winner].key)
        losers.append(asks[1 - winner].key)
    assert len(wins) == 2, wins
    assert profiles_participant.commit(winners, BY) == [None] * 200  # it counts the rows
    with local_transaction(profiles_engine) as connection:
        assert RESOURCE.discard(connection, losers) == {}


def test_two_threads_that_deadlock(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R7: two unique keys have no common order. Ids and numbers that run against each other, long enough to meet in the
    middle: PostgreSQL ends one of the two, which is redone, and still at most one gets what both want."""
    wins: Counter[str] = Counter()
    for _ in range(4):
        numbers = sorted(uuid4().hex[:12].upper() for _ in range(100))
        pair = []
        for order in (numbers, numbers[::-1]):
            ids = sorted(str(uuid4()) for _ in order)
            pair.append(ask(*(registered(number, business_id=id_) for number, id_ in zip(order, ids, strict=True))))
        votes = race(profiles_participant, *pair)
        for asked, answer in zip(pair, votes, strict=True):
            wins[str(verdict(answer)[0])] += 1
            expected = [("business", "prepared", 100)] if isinstance(answer, Yes) else []
            assert entities(profiles_engine, asked.key) == expected
        assert sum(isinstance(answer, Yes) for answer in votes) <= 1
    assert wins[str(Yes)] >= 1, wins


def with_one_place_left(engine: Engine, participant: Participant) -> business_pb2.Business:
    """A business that one more person may join."""
    firm = registered(people=people(business_pb2.ROLE_OWNER))
    key = create(participant, firm)
    with engine.begin() as connection:
        connection.execute(
            sa.text(MORE_PEOPLE),
            {"id": firm.business_id, "coordinator": key.coordinator, "transaction": key.transaction_id},
        )
    return firm


def test_a_business_has_a_thousand_people_at_most(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R6, R16: it is shown with all its people, so their number is limited when they are added, and says so."""
    firm = with_one_place_left(profiles_engine, profiles_participant)
    last, over = ask(relation(firm.business_id)), ask(relation(firm.business_id))
    (yes,) = profiles_participant.prepare([last])
    assert isinstance(yes, Yes)
    neighbour = ask(person())
    held, other = profiles_participant.prepare([over, neighbour])
    assert isinstance(other, Yes)
    assert isinstance(held, HeldByAnother), "the last place is reserved: nobody can know yet"
    assert held.holder == last.key
    assert profiles_participant.commit([last.key], BY) == [None]
    (refused,) = profiles_participant.prepare([over])
    assert isinstance(refused, InvalidRequest)
    assert [violation.field for violation in refused.violations] == ["writes[0].business_id"]


def test_the_last_place_is_given_once(profiles_engine: Engine, profiles_participant: Participant) -> None:
    """R6: of two in one batch, or at the same moment, one gets it, the other is told to wait; aborted: free."""
    firm = with_one_place_left(profiles_engine, profiles_participant)
    for round_ in range(20):
        pair = [ask(relation(firm.business_id)), ask(relation(firm.business_id))]
        votes = profiles_participant.prepare(pair) if round_ % 2 else race(profiles_participant, *pair)
        assert sorted(type(vote).__name__ for vote in votes) == ["HeldByAnother", "Yes"], round_
        winner = pair[[isinstance(vote, Yes) for vote in votes].index(True)]
        assert profiles_participant.abort([winner.key], BY) == [None]
