"""The torture's judge of saga and update-or-create: each way in which a run of theirs can be wrong is seen.

Histories and databases are made by hand; one thing is spoiled in each test.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from lab.torture import eventual, evidence
from lab.torture.designs import designs
from lab.torture.eventual import LAST
from lab.torture.history import Answer
from lab.torture.state import Entity, Prepared, Standing, State, Taken
from tests.support.torture_scene import LaterScene, Scene, at

OK, REFUSED, UNKNOWN = Answer.OK, Answer.REFUSED, Answer.UNKNOWN


@pytest.fixture
def saga() -> LaterScene:
    """Nothing has happened yet."""
    return LaterScene("saga")


@pytest.fixture
def updates() -> LaterScene:
    """The same with update-or-create."""
    return LaterScene("update-or-create")


# --- what is right ------------------------------------------------------------------------------------------------


def test_a_saga_that_agrees_holds(saga: LaterScene) -> None:
    """Pending, active, rejected for a number that is taken, misses while pending: nothing is called wrong."""
    owner = saga.owner("a")
    saga.read("read_person", owner.told["person_id"], REFUSED)
    saga.account("user_id", owner, "pending")
    saga.read("read_person", owner.told["person_id"], value="a")
    saga.account("user_id", owner, "active")
    saga.invited(owner, "b")
    saga.update(owner.told["person_id"], 1, "v2")
    saga.stored(owner.told["person_id"], 2, "v2")
    second = saga.owner("c")
    second.asked |= {"registration": "A", "duplicate": "True"}
    saga.unmade(second, "rejected", "ALREADY_EXISTS")
    saga.read("read_business", second.told["entity_id"], REFUSED)
    saga.account("business_id", second, "rejected", why="ALREADY_EXISTS", when=LAST)
    _, joined = saga.invited(second, "d")
    saga.unmade(joined, "rejected", "REFUSED")
    refused = {"business_id": second.told["business_id"], "entity_id": second.told["entity_id"], "invitation_id": ""}
    saga.call("accept", REFUSED, "REFUSED", name="e", email="e@example.org", duplicate="False", **refused)
    assert saga.found() == {}


def test_update_or_create_that_agrees_holds(updates: LaterScene) -> None:
    """Absent may stay absent; a number that is taken rejects the business alone; a director has no role at profiles."""
    owner = updates.owner("a")
    _, accept = updates.invited(owner, "b")
    updates.state.roles = {role: row for role, row in updates.state.roles.items() if role[2] == "owner"}
    absent = updates.owner("c")
    updates.unmade(absent, "absent", "UNAVAILABLE")
    updates.account("user_id", absent, "absent", why="UNAVAILABLE", when=LAST)
    second = updates.owner("d")
    person = updates.state.persons[UUID(second.told["person_id"])]
    second.asked |= {"registration": "A", "duplicate": "True"}
    updates.unmade(second, "rejected", "ALREADY_EXISTS")
    updates.state.persons[UUID(second.told["person_id"])] = person
    updates.state.accounts[UUID(second.told["user_id"])] = Standing("active")
    assert updates.found() == {}
    assert accept.answer is OK


def test_items_judged_are_counted(saga: LaterScene) -> None:
    """Nothing judged is not the same as nothing found."""
    assert set(saga.judged().values()) == {0, 2}  # two outboxes
    owner = saga.owner("a")
    saga.account("user_id", owner, "active")
    saga.account("user_id", owner, "active", when=LAST)
    saga.state.letters = {"x.dead": 0}
    judged = saga.judged()
    assert {name: judged[name] for name in ("I1", "I2", "I3", "I7", "I8", "I9")} == {
        "I1": 3, "I2": 4, "I3": 1, "I7": 4, "I8": 2, "I9": 1,
    }  # fmt: skip


def test_orphans_are_counted_by_what_the_design_allows(updates: LaterScene) -> None:
    """An absent one is none where accounts may stay absent."""
    updates.unmade(updates.owner("a"), "absent")
    updates.state.persons[uuid4()] = Entity("active", uuid4(), 1)
    promises = {name: design.promise for name, design in designs().items()}
    assert eventual.orphans(updates.state, promises["update-or-create"]) == 1
    assert eventual.orphans(updates.state, promises["saga"]) == 3
    assert eventual.standings(updates.state) == {"absent": 2}


# --- I0 -------------------------------------------------------------------------------------------------------------


def test_i0_an_address_that_is_taken_is_refused_at_once(saga: LaterScene) -> None:
    """Identity knows it by itself; a number that is taken is profiles' to refuse, later."""
    saga.owner("b").asked["duplicate"] = "True"
    assert saga.found() == {}
    saga.user("a").asked["duplicate"] = "True"
    assert saga.found() == {"I0": ["what is taken was given again"]}


def test_i0_a_number_that_is_taken_can_not_be_refused_at_once(saga: LaterScene) -> None:
    """Nobody could have known."""
    saga.call("sign_up", REFUSED, "ALREADY_EXISTS", name="a", email="a@example.org", duplicate="True")
    assert saga.found() == {"I0": ["nothing spoke against it"]}


def test_i0_nobody_is_refused_by_a_business_that_is_not_rejected(saga: LaterScene) -> None:
    """Only one without a profile for good can't be joined."""
    owner = saga.owner("a")
    ids = {"business_id": owner.told["business_id"], "entity_id": owner.told["entity_id"], "invitation_id": ""}
    saga.call("accept", REFUSED, "REFUSED", name="b", email="b@example.org", duplicate="False", **ids)
    assert saga.found() == {"I0": ["nothing spoke against it"]}


# --- I1 and I2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["person", "business"])
def test_i1_an_account_that_says_active_without_a_profile(saga: LaterScene, kind: str) -> None:
    """Persons and businesses."""
    owner = saga.owner("a")
    saga.state.persons.clear() if kind == "person" else saga.state.entities.clear()
    assert any(f"{kind} " in what and "says active, and there is none" in what for what in saga.found()["I1"])
    assert owner.answer is OK


@pytest.mark.parametrize("status", ["pending", "absent"])
def test_i1_an_account_whose_profile_never_comes(saga: LaterScene, status: str) -> None:
    """A saga's accounts are active or rejected when everything is quiet."""
    saga.unmade(saga.user("a"), status)
    (what,) = saga.found()["I1"]
    assert what.endswith(f"says {status}, and nothing is on its way any more")


def test_i1_a_rejected_account_with_a_profile(saga: LaterScene) -> None:
    """What was refused to it is there."""
    user_id = UUID(saga.user("a").told["user_id"])
    saga.state.accounts[user_id] = Standing("rejected", "ALREADY_EXISTS")
    assert any(what.endswith("says rejected, and it is there") for what in saga.found()["I1"])


def test_i1_a_rejection_without_a_reason(saga: LaterScene) -> None:
    """Its owner is to be told why."""
    saga.unmade(saga.user("a"), "rejected")
    assert any(what.endswith("says rejected, and there is no reason") for what in saga.found()["I1"])


@pytest.mark.parametrize("design", ["saga", "update-or-create"])
def test_i1_a_profile_without_an_account(design: str) -> None:
    """A dual write's orphan."""
    scene = LaterScene(design)
    owner = scene.owner("a")
    scene.state.users.clear()
    scene.state.businesses.clear()
    whats = scene.found()["I1"]
    assert f"person {owner.told['person_id']} is active, without its account" in whats
    assert f"business {owner.told['entity_id']} is active, without its account" in whats


def test_i1_a_profile_that_is_not_active(saga: LaterScene) -> None:
    """Neither design prepares anything."""
    saga.user("a")
    saga.state.persons = {id_: replace(row, state="prepared") for id_, row in saga.state.persons.items()}
    assert any(what.endswith("it is prepared") for what in saga.found()["I1"])


def test_i1_roles(saga: LaterScene, updates: LaterScene) -> None:
    """An owner's and, with a saga, a director's are there; and no other."""
    for scene, role in ((saga, "owner"), (saga, "director"), (updates, "owner")):
        scene.invited(scene.owner(role), f"{role}-2")
        scene.state.roles = {id_: row for id_, row in scene.state.roles.items() if id_[2] != role}
        assert any(what.endswith(f"{role} is not at profiles") for what in scene.found()["I1"])
    saga.state.members = {one for one in saga.state.members if one[2] != "director"}
    saga.role(uuid4(), uuid4(), "director", uuid4())
    saga.state.members = {one for one in saga.state.members if one[2] != "director"}
    assert any(what.endswith("is at profiles only") for what in saga.found()["I1"])


@pytest.mark.parametrize("side", ["identity", "profiles"])
def test_i2_a_message_that_was_never_published(saga: LaterScene, side: str) -> None:
    """Either outbox."""
    saga.state.waiting[side] = 3
    assert saga.found() == {"I2": [f"3 messages in the outbox of {side}"]}


def test_i2_an_account_that_still_waits(saga: LaterScene) -> None:
    """Whatever its profile is."""
    user_id = UUID(saga.user("a").told["user_id"])
    saga.state.accounts[user_id] = Standing("pending")
    assert saga.found()["I2"] == [f"account {user_id} is pending"]


def test_i2_something_prepared(saga: LaterScene) -> None:
    """Two-phase's own I2 holds here, too."""
    saga.state.prepared[uuid4()] = Prepared("prepared", True, 1, at(0), None, "")
    assert len(saga.found()["I2"]) == 1


# --- I3 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["saga", "update-or-create"])
def test_i3_a_profile_that_holds_something_else(design: str) -> None:
    """Every column that clients set, of persons and businesses, acknowledged or not."""
    scene = LaterScene(design)
    owner = scene.owner("a")
    person_id, entity_id = UUID(owner.told["person_id"]), UUID(owner.told["entity_id"])
    for rows, id_, column in (
        (scene.state.persons, person_id, "family_name"),
        (scene.state.entities, entity_id, "website"),
    ):
        rows[id_] = replace(rows[id_], content={**rows[id_].content, column: "other"})
    wanted = {"I3": ["the person's family_name is 'other'; the business's website is 'other'"]}
    assert scene.found() == wanted
    owner.answer, owner.told = UNKNOWN, {}
    assert scene.found() == wanted


def test_i3_an_acknowledged_account_that_has_gone(saga: LaterScene) -> None:
    """On both sides, so that they agree."""
    owner = saga.owner("a")
    saga.state = State()
    (what,) = saga.found()["I3"]
    assert what.startswith("the user's address is None; identity's business has gone; the owner is no member")
    assert owner.answer is OK


def test_i3_an_acknowledged_profile_that_has_gone(saga: LaterScene) -> None:
    """Active, and not there."""
    saga.owner("a")
    saga.state.persons.clear()
    saga.state.entities.clear()
    assert saga.found()["I3"] == ["the person has gone; the business has gone"]


def test_i3_a_rejection_that_nothing_explains(saga: LaterScene) -> None:
    """Neither a number that is taken nor a business that was rejected: a user, an owner, a director."""
    owner = saga.owner("a")
    _, accept = saga.invited(owner, "b")
    user = saga.user("c")
    saga.unmade(accept, "rejected", "REFUSED")
    saga.unmade(user, "rejected", "ALREADY_EXISTS")
    other = saga.owner("d")
    saga.unmade(other, "rejected", "ALREADY_EXISTS")
    nothing = "and nothing spoke against it"
    assert saga.found() == {
        "I3": [
            f"the person was rejected (REFUSED), {nothing}",
            f"the person was rejected (ALREADY_EXISTS), {nothing}",
            f"the person was rejected (ALREADY_EXISTS), {nothing}; "
            "the business was rejected (ALREADY_EXISTS), and nobody has its registration number",
        ]
    }


def test_i3_a_rejection_for_another_reason_than_the_right_one(saga: LaterScene) -> None:
    """The number is taken, and the account is told something else."""
    saga.owner("a")
    second = saga.owner("b")
    second.asked["registration"] = "A"
    saga.unmade(second, "rejected", "INTERNAL")
    (what,) = saga.found()["I3"]
    assert what.startswith("the person was rejected (INTERNAL)")
    assert "the business was rejected (INTERNAL)" in what


def test_i3_a_number_that_is_taken_rejects_no_person_who_is_made_alone(updates: LaterScene) -> None:
    """With update-or-create each profile has an update of its own."""
    updates.owner("a")
    second = updates.owner("b")
    second.asked["registration"] = "A"
    updates.unmade(second, "rejected", "ALREADY_EXISTS")
    assert updates.found() == {"I3": ["the person was rejected (ALREADY_EXISTS), and nothing spoke against it"]}


def test_i3_an_invitation_that_has_gone(saga: LaterScene) -> None:
    """Identity's own affair, in every design."""
    saga.lost_invitation(saga.owner("a"))
    assert saga.found() == {"I3": ["the invitation has gone"]}


# --- I4 to I6: where they are weaker, and where not ------------------------------------------------------------------


def test_i4_a_miss_is_allowed_while_the_account_is_pending_only(saga: LaterScene) -> None:
    """Two-phase's judge calls any miss of an acknowledged person wrong; this one, once the account says active."""
    owner = saga.owner("a")
    saga.read("read_person", owner.told["person_id"], REFUSED)
    saga.account("user_id", owner, "pending")
    saga.read("read_business", owner.told["entity_id"], REFUSED)
    assert saga.found() == {}
    saga.account("user_id", owner, "active")
    saga.account("business_id", owner, "active")
    saga.read("read_person", owner.told["person_id"], REFUSED)
    saga.read("read_business", owner.told["entity_id"], REFUSED)
    assert saga.found() == {"I4": ["missed"] * 2}


def test_i4_a_miss_after_an_answer_that_said_active(updates: LaterScene) -> None:
    """The create's own answer counts."""
    owner = updates.owner("a")
    owner.told |= {"status": "active", "business_status": "active"}
    updates.read("read_person", owner.told["person_id"], REFUSED)
    updates.read("read_business", owner.told["entity_id"], REFUSED)
    assert updates.found() == {"I4": ["missed"] * 2}


def test_i4_what_was_seen_stays_seen(saga: LaterScene) -> None:
    """Also before anybody was told that it is active: persons, versions, people."""
    owner = saga.owner("a")
    person_id, entity_id = owner.told["person_id"], owner.told["entity_id"]
    saga.read("read_person", person_id, value="a")
    saga.read("read_person", person_id, REFUSED)
    saga.read("read_business", entity_id, value="a Ltd", people=[f"{person_id}:owner"])
    saga.read("read_business", entity_id, value="a Ltd")
    saga.update(person_id, 1, "v2")
    saga.stored(person_id, 2, "v2")
    saga.read("read_person", person_id, value="a")
    assert saga.found() == {"I4": ["missed", f"without {person_id}:owner", "went back from version 2 to 1"]}


def test_i4_an_account_is_never_missed(saga: LaterScene) -> None:
    """It is there from its acknowledgement on, in every design."""
    saga.read("read_user", saga.user("a").told["user_id"], REFUSED)
    assert saga.found() == {"I4": ["missed"]}


def test_i5_a_refused_user_that_exists(saga: LaterScene) -> None:
    """What was refused at once leaves nothing."""
    user = saga.user("a")
    user.answer, user.told, user.reason, user.asked["duplicate"] = REFUSED, {}, "ALREADY_EXISTS", "True"
    whats = saga.found()["I5"]
    assert any(what.startswith("user ") for what in whats)
    assert any(what.startswith("person ") for what in whats)


def test_i5_the_owner_of_a_business_whose_own_profile_is_absent(updates: LaterScene, saga: LaterScene) -> None:
    """The business names its owner, who has signed up with it; but nobody else, and in no other design."""
    for scene in (saga, updates):
        owner = scene.owner("a")
        del scene.state.persons[UUID(owner.told["person_id"])]
        scene.state.accounts[UUID(owner.told["user_id"])] = Standing("absent")
    assert updates.found() == {}
    assert any(what.startswith("role ") for what in saga.found()["I5"])
    other = updates.user("b")
    updates.role(UUID(owner.told["business_id"]), UUID(other.told["user_id"]), "owner", uuid4())
    assert any(what.startswith("role ") for what in updates.found()["I5"])


def test_i6_a_lost_update(updates: LaterScene) -> None:
    """Acknowledged, and the row is back at version 1."""
    person_id = updates.user("a").told["person_id"]
    updates.update(person_id, 1, "v2")
    assert any("is back at version 1" in what for what in updates.found()["I6"])


def test_i6_what_was_never_there_has_not_gone(saga: LaterScene) -> None:
    """A rejected person has no version; one that was read once has."""
    owner, second = saga.owner("a"), saga.owner("b")
    second.asked["registration"] = "A"
    saga.unmade(second, "rejected", "ALREADY_EXISTS")
    assert saga.found() == {}
    saga.read("read_person", second.told["person_id"], value="b")
    assert saga.found()["I6"] == [f"person {second.told['person_id']} has gone"]
    assert owner.answer is OK


# --- I7, I8 and I9 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["person", "business", "business_person"])
def test_i7_something_that_was_created_twice(saga: LaterScene, kind: str) -> None:
    """By profiles' own audit: what is there must have been made once."""
    saga.owner("a")
    (which,) = [one for one in saga.state.created if one[0] == kind]
    saga.state.created[which] = 2
    assert saga.found() == {"I7": [f"{kind} {which[1]} was created 2 times"]}


def test_i7_a_number_that_two_businesses_have(updates: LaterScene) -> None:
    """Profiles is to give each once."""
    first, second = updates.owner("a"), updates.owner("b")
    entity_id = UUID(second.told["entity_id"])
    row = updates.state.entities[entity_id]
    updates.state.entities[entity_id] = replace(row, content={**row.content, "registration_number": "A"})
    second.asked["registration"] = "A"
    assert updates.found() == {"I7": ["2 businesses have the registration number A"]}
    assert first.answer is OK


def test_i7_a_second_business_of_one_signup(updates: LaterScene) -> None:
    """A repeat is no second signup."""
    owner = updates.owner("a")
    business_id = uuid4()
    updates.state.businesses.add(business_id)
    updates.state.accounts[business_id] = Standing("absent")
    updates.state.members.add((business_id, UUID(owner.told["user_id"]), "owner"))
    assert updates.found() == {"I7": [f"user {owner.told['user_id']} has signed up 2 businesses"]}


def test_i7_an_event_that_was_taken_up_twice_or_never(saga: LaterScene) -> None:
    """Its row in the inbox is the only one."""
    saga.user("a")
    (one,) = saga.state.taken
    saga.state.taken.append(one)
    assert saga.found() == {"I7": [f"event {one.event_id} was taken up 2 times"]}
    saga.state.taken.clear()
    assert saga.found() == {"I7": [f"event {one.event_id} was taken up 0 times"]}


def test_i7_an_event_that_nobody_has_asked_for(saga: LaterScene) -> None:
    """No request stands behind it."""
    stranger = Taken(uuid4(), "created")
    saga.state.taken.append(stranger)
    assert saga.found() == {"I7": [f"event {stranger.event_id} was taken up, and nobody has asked for it"]}


def test_i7_what_came_of_an_event_is_what_its_accounts_say(saga: LaterScene) -> None:
    """The inbox has rejected it, and the accounts are active; or the reason is another."""
    user_id = UUID(saga.user("a").told["user_id"])
    (one,) = saga.state.taken
    saga.state.taken = [replace(one, outcome="rejected", reason="ALREADY_EXISTS")]
    (what,) = saga.found()["I7"]
    assert what.endswith(f"was rejected ALREADY_EXISTS, and account {user_id} says active ")


def test_i7_half_of_a_signup(saga: LaterScene) -> None:
    """User and business of one event stand and fall together."""
    owner = saga.owner("a")
    business_id = UUID(owner.told["business_id"])
    saga.state.accounts[business_id] = Standing("rejected", "ALREADY_EXISTS")
    assert any(f"account {business_id} says rejected" in what for what in saga.found()["I7"])


def test_i8_an_account_whose_last_word_was_not_its_last(saga: LaterScene) -> None:
    """Active, and then pending again."""
    user = saga.user("a")
    saga.account("user_id", user, "active")
    saga.account("user_id", user, "pending")
    assert saga.found() == {"I8": ["it said active before"]}


def test_i8_what_identity_says_when_all_is_quiet(saga: LaterScene) -> None:
    """Another status, another reason, no answer."""
    user = saga.user("a")
    saga.account("user_id", user, "pending", when=LAST)
    assert saga.found() == {"I8": ["its row says active "]}
    other = LaterScene("saga")
    other.account("user_id", other.user("a"), "active", why="ALREADY_EXISTS", when=LAST)
    assert other.found() == {"I8": ["its row says active "]}
    third = LaterScene("saga")
    user = third.user("a")
    third.call("read_user", UNKNOWN, "UNAVAILABLE", id=user.told["user_id"], when=LAST)
    assert third.found() == {"I8": ["it was not answered, though nothing is broken"]}


def test_i8_what_profiles_answers_when_all_is_quiet(saga: LaterScene) -> None:
    """A person that is there and is not found; one that is found and is not there."""
    user = saga.user("a")
    saga.call("read_person", REFUSED, "NOT_FOUND", id=user.told["person_id"], when=LAST)
    assert saga.found() == {"I8": ["its row is active"]}
    other = LaterScene("saga")
    id_ = str(uuid4())
    other.call("read_business", OK, told={"version": "1", "value": "x", "people": ""}, id=id_, when=LAST)
    assert other.found()["I8"] == ["its row is not there"]


@pytest.mark.parametrize("design", ["saga", "hybrid"])
def test_i9_a_message_that_was_buried(design: str) -> None:
    """Nothing that is done to processes and wires makes a message one that nobody can take up."""
    state = State(letters={"tandem.profiles.requested.dead": 2, "tandem.commits.profiles.dead": 0})
    broken = {one.name: [str(breach) for breach in one.broken] for one in designs()[design].judge([], state, [])}
    assert {name: whats for name, whats in broken.items() if whats} == {
        "I9": ["2 messages in tandem.profiles.requested.dead"]
    }


def test_the_history_of_a_breach_shows_what_came_of_its_event(saga: LaterScene) -> None:
    """The calls, and the inbox's row instead of a decision's."""
    user = saga.user("a")
    (event,) = saga.state.taken
    saga.state.accounts[UUID(user.told["user_id"])] = Standing("pending")
    (breach, *_) = eventual.agree(saga.state, designs()["saga"].promise).broken
    lines = evidence.of(breach, saga.calls, saga.state, [])
    assert any("create_user" in line for line in lines)
    assert f"    inbox's row of {event.event_id}: created" in lines
    assert not any("decision of" in line for line in lines)


def test_the_hybrid_is_held_to_what_two_phase_is() -> None:
    """I0 to I6, with the same words, and its messages besides."""
    table = designs()
    words = {name: [(one.name, one.what) for one in table[name].judge([], State(), [])] for name in table}
    assert words["hybrid"][:-1] == words["two-phase"]
    assert [name for name, _ in words["two-phase"]] == [f"I{number}" for number in range(7)]
    scene = Scene()
    scene.user("a")
    scene.state.persons.clear()
    broken = {one.name for one in table["hybrid"].judge(scene.calls, scene.state, []) if one.broken}
    assert broken == {"I1", "I3", "I6"}
