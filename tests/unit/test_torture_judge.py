"""The torture's judge: every way in which a run can be wrong is seen, and what is right is not called wrong.

Histories and databases are made by hand; one thing is spoiled in each test.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from lab.torture import evidence
from lab.torture.faults import Family, Fault
from lab.torture.history import Answer
from lab.torture.invariants import TRANSPORT, judge
from lab.torture.state import Decision, Entity, Prepared, State, entity_of, person_of
from tests.support.torture_scene import Scene, at

OK, REFUSED, UNKNOWN = Answer.OK, Answer.REFUSED, Answer.UNKNOWN


@pytest.fixture
def scene() -> Scene:
    """Nothing has happened yet."""
    return Scene()


# --- what is right ------------------------------------------------------------------------------------------------


def test_what_agrees_holds(scene: Scene) -> None:
    """Signups, an accepted invitation, updates, reads and refusals as they should be break nothing."""
    owner = scene.owner("a")
    invite, accept = scene.invited(owner, "b")
    person_id, entity_id = owner.told["person_id"], owner.told["entity_id"]
    owns, directs = f"{person_id}:owner", f"{accept.told['person_id']}:director"
    scene.read("read_person", person_id, value="a")
    scene.read("read_business", entity_id, value="a Ltd", people=[owns, directs])
    scene.read("read_user", owner.told["user_id"], value="a@example.org")
    members = [f"{owner.told['user_id']}:owner", f"{accept.told['user_id']}:director"]
    scene.read("read_account", owner.told["business_id"], value=entity_id, people=members)
    scene.update(person_id, 1, "v2")
    scene.update(person_id, 1, "late", REFUSED)
    scene.update(person_id, 2, "v3", UNKNOWN)
    scene.read("read_person", person_id, version=2, value="v2")
    scene.read("read_person", person_id, UNKNOWN)
    scene.stored(person_id, 3, "v3")
    scene.call("create_user", REFUSED, "ALREADY_EXISTS", name="c", email="a@example.org", duplicate="True")
    scene.call("create_user", UNKNOWN, "UNAVAILABLE", name="d", email="d@example.org", duplicate="False")
    assert scene.broken() == {}
    assert invite.told["invitation_id"] == accept.asked["invitation_id"]


def test_items_judged_are_counted(scene: Scene) -> None:
    """An empty history judges nothing, and says so; each call that an invariant looks at counts."""
    assert [verdict.judged for verdict in judge([], State())] == [0] * 7
    user = scene.user("a")
    scene.read("read_person", user.told["person_id"], value="a")
    scene.update(user.told["person_id"], 1, "v2")
    scene.stored(user.told["person_id"], 2, "v2")
    scene.call("create_user", REFUSED, "ALREADY_EXISTS", name="b", email="a@example.org", duplicate="True")
    judged = {verdict.name: verdict.judged for verdict in judge(scene.calls, scene.state)}
    assert judged == {"I0": 4, "I1": 3, "I2": 2, "I3": 1, "I4": 1, "I5": 1, "I6": 1}


def test_the_control_group_without_decisions_is_judged_by_its_rows(scene: Scene) -> None:
    """A dual write that went well has no decisions, and that alone is no breach."""
    scene.owner("a")
    scene.state.decisions.clear()
    assert scene.broken(protocol=False) == {}


# --- I0 -------------------------------------------------------------------------------------------------------------


def test_i0_internal_of_a_server_breaks_the_run(scene: Scene) -> None:
    """INTERNAL is a mistake by definition, whatever was broken at that time."""
    scene.faults.append(Fault(0.0, "kill -9", "identity", Family.KILL, 1, until=9.0))
    scene.call("create_user", UNKNOWN, "INTERNAL", name="a", email="a@example.org", duplicate="False")
    assert scene.broken() == {"I0": ["INTERNAL"]}


def test_i0_internal_of_the_transport_is_explained_by_a_fault_only(scene: Scene) -> None:
    """A connection that ends in the middle of an answer says INTERNAL; without a fault none ends."""
    scene.call("read_user", UNKNOWN, f"INTERNAL{TRANSPORT}", id=str(uuid4()))
    assert scene.broken() == {"I0": ["INTERNAL of the transport, without any fault"]}
    scene.faults.append(Fault(0.0, "cut", "clients to identity", Family.WIRE, until=0.05))
    assert scene.broken() == {}


def test_i0_a_refusal_needs_a_reason_that_the_call_explains(scene: Scene) -> None:
    """Never an error for a signup that nothing speaks against; nor is what is taken given twice."""
    scene.call("create_user", REFUSED, "ALREADY_EXISTS", name="a", email="a@example.org", duplicate="False")
    scene.call("create_user", REFUSED, "REQUEST_REUSED", name="b", email="x@example.org", duplicate="True")
    assert scene.broken() == {"I0": ["nothing spoke against it"] * 2}
    other = Scene()
    other.user("a").asked["duplicate"] = "True"
    assert other.broken() == {"I0": ["what is taken was given again"]}


# --- I1 and I2 ------------------------------------------------------------------------------------------------------


def test_i1_a_user_without_its_person(scene: Scene) -> None:
    """I1: user exists ⇔ its Person is active."""
    user = scene.user("a")
    del scene.state.persons[UUID(user.told["person_id"])]
    assert any("person" in what and "not at profiles" in what for what in scene.broken()["I1"])


def test_i1_a_person_without_its_user(scene: Scene) -> None:
    """I1, from the other side: a dual write's orphan."""
    user = scene.user("a")
    del scene.state.users[UUID(user.told["user_id"])]
    scene.state.requests.clear()
    assert any("one side only: active at profiles" in what for what in scene.broken(protocol=False)["I1"])


def test_i1_a_role_on_one_side(scene: Scene) -> None:
    """I1: likewise roles."""
    scene.owner("a")
    scene.state.members.clear()
    assert any(what.startswith("role") for what in scene.broken()["I1"])


def test_i1_a_committed_decision_of_which_nothing_exists(scene: Scene) -> None:
    """Both sides agree that there is nothing, and the log says that there must be something."""
    scene.state.decisions[uuid4()] = Decision("committed", at(0))
    whats = scene.broken()["I1"]
    assert any("identity has nothing of it" in what for what in whats)
    assert any("the participant's row is None" in what for what in whats)


def test_i1_half_of_a_transaction(scene: Scene) -> None:
    """All or none: a signup whose Business and role are missing on both sides."""
    owner = scene.owner("a")
    scene.state.entities.clear()
    scene.state.roles.clear()
    scene.state.members.clear()
    scene.state.businesses.clear()
    scene.state.requests = {id_: replace(request, business_id=None) for id_, request in scene.state.requests.items()}
    assert any("profiles has {'person': 1} of it instead of" in what for what in scene.broken()["I1"])
    assert owner.answer is OK


def test_i1_an_aborted_decision_has_nothing(scene: Scene) -> None:
    """What was decided aborted exists on both sides nevertheless."""
    scene.user("a")
    scene.state.decisions = {id_: replace(one, outcome="aborted") for id_, one in scene.state.decisions.items()}
    whats = scene.broken()["I1"]
    assert any("it was aborted, and profiles has {'person': 1} of it" in what for what in whats)
    assert any("it was aborted, and identity has its create_user" in what for what in whats)
    assert any("it was aborted, and the participant has committed it" in what for what in whats)


def test_i1_the_participants_row_is_what_was_decided(scene: Scene) -> None:
    """The row says aborted, the log committed."""
    scene.user("a")
    scene.state.prepared = {id_: replace(one, state="aborted") for id_, one in scene.state.prepared.items()}
    assert any("the participant's row is aborted" in what for what in scene.broken()["I1"])


def test_i1_a_participant_that_committed_what_nobody_decided(scene: Scene) -> None:
    """The participant's row alone, without any entity."""
    scene.state.prepared[uuid4()] = Prepared("committed", True, 0, at(0), at(1), "sweeper")
    assert any("it was not decided, and the participant has committed it" in what for what in scene.broken()["I1"])


def test_i1_less_than_was_promised(scene: Scene) -> None:
    """The vote was for two rows."""
    scene.user("a")
    scene.state.prepared = {id_: replace(one, staged=2) for id_, one in scene.state.prepared.items()}
    assert any("2 rows were promised, and 1 are there" in what for what in scene.broken()["I1"])


@pytest.mark.parametrize("changed", [{"state": "prepared"}, {"confirmed": False}, {"parked": "EXPIRED"}])
def test_i2_not_finished_at_the_participant(scene: Scene, changed: dict[str, object]) -> None:
    """I2: nothing is prepared, unconfirmed or parked."""
    scene.user("a")
    scene.state.prepared = {id_: replace(one, **changed) for id_, one in scene.state.prepared.items()}  # type: ignore[arg-type]
    assert len(scene.broken()["I2"]) == 1


@pytest.mark.parametrize("changed", [{"undelivered": ("profiles",)}, {"parked": ("profiles",)}])
def test_i2_not_finished_at_the_initiator(scene: Scene, changed: dict[str, object]) -> None:
    """I2: nothing is undelivered or parked."""
    scene.user("a")
    scene.state.decisions = {id_: replace(one, **changed) for id_, one in scene.state.decisions.items()}  # type: ignore[arg-type]
    assert len(scene.broken()["I2"]) == 1


# --- I3 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [("display_name", "b"), ("given_name", "b"), ("nationalities", []), ("date_of_birth", None),
     ("email_addresses", ["b@example.org"]), ("postal_addresses", []), ("tax_identifiers", [])],
)  # fmt: skip
def test_i3_a_person_with_another_column(scene: Scene, column: str, value: object) -> None:
    """I3: exactly as acknowledged, in every column that clients set."""
    person_id = UUID(scene.user("a").told["person_id"])
    row = scene.state.persons[person_id]
    scene.state.persons[person_id] = replace(row, content={**row.content, column: value})
    assert scene.broken()["I3"] == [f"the person's {column} is {value!r}"]


def test_i3_an_update_changes_its_own_column_only(scene: Scene) -> None:
    """After an update the other columns are still as acknowledged."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.stored(person_id, 2, "v2")
    assert scene.broken() == {}
    row = scene.state.persons[UUID(person_id)]
    scene.state.persons[UUID(person_id)] = replace(row, content={**row.content, "phone_numbers": []})
    assert scene.broken() == {"I3": ["the person's phone_numbers is []"]}


@pytest.mark.parametrize("column", ["legal_name", "registration_number", "entity_type", "website", "industry_code"])
def test_i3_a_business_with_another_column(scene: Scene, column: str) -> None:
    """I3: businesses as well."""
    entity_id = UUID(scene.owner("a").told["entity_id"])
    row = scene.state.entities[entity_id]
    scene.state.entities[entity_id] = replace(row, content={**row.content, column: "other"})
    assert scene.broken()["I3"] == [f"the business's {column} is 'other'"]


def test_i3_an_acknowledged_invitation_that_has_gone(scene: Scene) -> None:
    """I3: invitations as well."""
    scene.lost_invitation(scene.owner("a"))
    assert scene.broken() == {"I3": ["the invitation has gone"]}


def test_i3_an_acceptance_that_the_invitation_does_not_know(scene: Scene) -> None:
    """It could be accepted a second time."""
    scene.invited(scene.owner("a"), "b")
    scene.state.invitations = {
        id_: replace(invitation, accepted_by=None) for id_, invitation in scene.state.invitations.items()
    }
    assert scene.broken() == {"I3": ["the invitation does not say who has accepted it"]}


def test_i3_a_member_that_has_gone_on_both_sides(scene: Scene) -> None:
    """Both sides agree that there is no director, and the client was told that there is one."""
    _, accept = scene.invited(scene.owner("a"), "b")
    user_id, business_id = UUID(accept.told["user_id"]), UUID(accept.asked["business_id"])
    scene.state.members.remove((business_id, user_id, "director"))
    del scene.state.roles[entity_of(business_id), person_of(user_id), "director"]
    assert scene.broken()["I3"] == ["the director is no member; the director's role is gone"]


def test_i3_what_exists_though_nobody_was_told_is_as_asked(scene: Scene) -> None:
    """An unknown signup may exist, but with its own content."""
    user = scene.user("a")
    user.answer, user.told = UNKNOWN, {}
    assert scene.broken() == {}
    (person_id,) = scene.state.persons
    row = scene.state.persons[person_id]
    scene.state.persons[person_id] = replace(row, content={**row.content, "family_name": "Of b"})
    assert scene.broken() == {"I3": ["the person's family_name is 'Of b'"]}


# --- I4 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told"),
    [("read_person", "person_id"), ("read_user", "user_id"), ("read_business", "entity_id"),
     ("read_account", "business_id")],
)  # fmt: skip
def test_i4_a_read_that_misses_what_was_acknowledged(scene: Scene, kind: str, told: str) -> None:
    """I4: no read after an acknowledged signup ever missed it, on either side."""
    owner = scene.owner("a")
    scene.read(kind, owner.told[told], REFUSED)
    assert scene.broken() == {"I4": ["missed"]}


def test_i4_a_read_that_began_before_the_acknowledgement_may_miss(scene: Scene) -> None:
    """Nobody was promised anything yet."""
    user = scene.user("a")
    scene.read("read_person", user.told["person_id"], REFUSED).began = user.began
    assert scene.broken() == {}


def test_i4_a_read_that_misses_an_acknowledged_update(scene: Scene) -> None:
    """Version 1 after version 2 was acknowledged."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.stored(person_id, 2, "v2")
    scene.read("read_person", person_id, version=1, value="a")
    assert scene.broken() == {"I4": ["went back from version 2 to 1"]}


def test_i4_reads_that_go_back(scene: Scene) -> None:
    """A read that began after another has ended shows no less, even of an update that nobody acknowledged."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2", UNKNOWN)
    scene.stored(person_id, 2, "v2")
    scene.read("read_person", person_id, version=2, value="v2")
    scene.read("read_person", person_id, version=1, value="a")
    assert scene.broken() == {"I4": ["went back from version 2 to 1"]}


def test_i4_a_read_shows_what_was_written(scene: Scene) -> None:
    """The right version with somebody else's value."""
    scene.read("read_person", scene.user("a").told["person_id"], value="b")
    assert scene.broken() == {"I4": ["version 1 was written as 'a'"]}


@pytest.mark.parametrize("kind", ["read_business", "read_account"])
def test_i4_a_business_without_an_acknowledged_director(scene: Scene, kind: str) -> None:
    """Its people are read with it (R10: a reader of an entity or its relations)."""
    owner = scene.owner("a")
    scene.invited(owner, "b")
    business = kind == "read_business"
    owns = f"{owner.told['person_id' if business else 'user_id']}:owner"
    id_, value = (
        (owner.told["entity_id"], "a Ltd") if business else (owner.told["business_id"], owner.told["entity_id"])
    )
    scene.read(kind, id_, value=value, people=[owns])
    (what,) = scene.broken()["I4"]
    assert what.startswith("without ")
    assert what.endswith(":director")


# --- I5 -------------------------------------------------------------------------------------------------------------


def test_i5_a_refused_user_that_exists_on_both_sides(scene: Scene) -> None:
    """I5: what was refused does not exist."""
    user = scene.user("a")
    user.answer, user.told, user.reason = REFUSED, {}, "ALREADY_EXISTS"
    whats = scene.broken()["I5"]
    assert any(what.startswith("user ") for what in whats)
    assert any(what.startswith("person ") for what in whats)


def test_i5_a_refused_person_is_found_after_an_update_as_well(scene: Scene) -> None:
    """Its first version is not needed to know whose it is."""
    user = scene.user("a")
    scene.update(user.told["person_id"], 1, "v2")
    scene.stored(user.told["person_id"], 2, "v2")
    user.answer, user.told, user.reason = REFUSED, {}, "ALREADY_EXISTS"
    assert any(what.startswith("person ") for what in scene.broken()["I5"])


def test_i5_a_refused_business_that_exists_on_both_sides(scene: Scene) -> None:
    """A refused sign_up whose user is nowhere, and whose Business is on both sides."""
    owner = scene.owner("a")
    owner.answer, owner.reason = REFUSED, "ALREADY_EXISTS"
    scene.state.users.clear()
    scene.state.persons.clear()
    whats = scene.broken()["I5"]
    assert any(what.startswith("business ") for what in whats)
    assert any(what.startswith("role ") for what in whats)


def test_i5_a_refused_invitation_that_exists(scene: Scene) -> None:
    """Invitations as well."""
    invite, _ = scene.invited(scene.owner("a"), "b")
    invite.answer, invite.reason = REFUSED, "NOT_ALLOWED"
    assert any(what.startswith("invitation ") for what in scene.broken()["I5"])


def test_i5_a_refused_acceptance_that_left_its_mark(scene: Scene) -> None:
    """The invitation counts as accepted."""
    _, accept = scene.invited(scene.owner("a"), "b")
    accept.answer, accept.reason = REFUSED, "REFUSED"
    assert any(what.startswith("accepted invitation ") for what in scene.broken()["I5"])


def test_i5_what_nobody_asked_for(scene: Scene) -> None:
    """A person of whom no call knows."""
    scene.state.persons[uuid4()] = Entity("active", uuid4(), 1, {"given_name": "x", "display_name": "x"})
    assert any("nobody asked for it" in what for what in scene.broken()["I5"])


def test_i5_a_role_that_nobody_asked_for(scene: Scene) -> None:
    """On both sides a director whom nobody has invited."""
    owner, user = scene.owner("a"), scene.user("b")
    id_ = next(iter(scene.state.decisions))
    scene.role(UUID(owner.told["business_id"]), UUID(user.told["user_id"]), "director", id_)
    assert any(what.startswith("role ") for what in scene.broken()["I5"])


# --- I6 -------------------------------------------------------------------------------------------------------------


def test_i6_an_unknown_update_does_not_pay_for_a_lost_one(scene: Scene) -> None:
    """Acknowledged 2, 3 and 5; the row is back at 4 with the value of an unknown one."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.update(person_id, 2, "v3")
    scene.update(person_id, 3, "u4", UNKNOWN)
    scene.update(person_id, 4, "v5")
    scene.stored(person_id, 4, "u4")
    assert any("is back at version 4" in what for what in scene.broken()["I6"])


def test_i6_a_person_that_nobody_updated(scene: Scene) -> None:
    """At version 7, with another's name, without any update call."""
    person_id = scene.user("a").told["person_id"]
    scene.stored(person_id, 7, "somebody else")
    assert any("nobody wrote 2" in what for what in scene.broken()["I6"])


def test_i6_an_unknown_update_of_an_old_version_makes_no_later_one(scene: Scene) -> None:
    """The optimistic lock must have refused what was read at version 1 once there was a version 2."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.update(person_id, 1, "stale", UNKNOWN)
    scene.update(person_id, 2, "v3")
    scene.stored(person_id, 4, "stale")
    assert any("nobody wrote 4" in what for what in scene.broken()["I6"])


def test_i6_a_gap_that_nobody_explains(scene: Scene) -> None:
    """Acknowledged 2 and 5; one unknown update explains at most one version, and not both of 3 and 4."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.update(person_id, 2, "v3", UNKNOWN)
    scene.update(person_id, 4, "v5")
    scene.stored(person_id, 5, "v5")
    assert any("nobody wrote 4" in what for what in scene.broken()["I6"])


def test_i6_the_last_value_is_its_writers(scene: Scene) -> None:
    """Version 3 was acknowledged with v3, and holds the unknown one's value."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "v2")
    scene.update(person_id, 2, "u3", UNKNOWN)
    scene.update(person_id, 2, "v3")
    scene.stored(person_id, 3, "u3")
    assert any("which its writer did not write" in what for what in scene.broken()["I6"])


def test_i6_a_refused_update_is_nobodys_writer(scene: Scene) -> None:
    """VERSION_MISMATCH was answered, and the value is there."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "r", REFUSED)
    scene.stored(person_id, 2, "r")
    assert any("nobody wrote 2" in what for what in scene.broken()["I6"])


def test_i6_two_updates_with_one_version(scene: Scene) -> None:
    """One of them is lost."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "x")
    scene.update(person_id, 1, "y")
    scene.stored(person_id, 2, "y")
    assert any("two updates made version 2" in what for what in scene.broken()["I6"])


def test_i6_not_by_one(scene: Scene) -> None:
    """I6: versions grow by one."""
    person_id = scene.user("a").told["person_id"]
    scene.update(person_id, 1, "x", told=3)
    scene.stored(person_id, 3, "x")
    assert "not by one" in scene.broken()["I6"]


def test_i6_looks_at_businesses_too(scene: Scene) -> None:
    """A Business that nobody updated, at version 2."""
    entity_id = UUID(scene.owner("a").told["entity_id"])
    row = scene.state.entities[entity_id]
    scene.state.entities[entity_id] = replace(row, version=2, content={**row.content, "legal_name": "other"})
    assert any("nobody wrote 2" in what for what in scene.broken()["I6"])


# --- the offending history ------------------------------------------------------------------------------------------


def test_a_breach_comes_with_its_history(scene: Scene) -> None:
    """The calls concerned, the decision's row, the participant's row, and the faults that overlap; nothing else."""
    stranger, user = scene.user("stranger"), scene.user("a")
    person_id = user.told["person_id"]
    scene.read("read_person", person_id, value="a")
    scene.faults += [
        Fault(user.began, "kill -9", "identity", Family.KILL, 1, until=user.over),
        Fault(90.0, "kill -9", "profiles", Family.KILL, 1, until=91.0),
    ]
    (transaction_id,) = [row.transaction_id for id_, row in scene.state.persons.items() if str(id_) == person_id]
    del scene.state.users[UUID(user.told["user_id"])]
    breach = next(one for one in judge(scene.calls, scene.state)[1].broken if "one side only" in one.what)
    lines = evidence.of(breach, scene.calls, scene.state, scene.faults)
    said = "\n".join(lines)
    assert "create_user" in said
    assert "read_person" in said
    assert f"decision of {transaction_id}: committed" in said
    assert f"participant's row of {transaction_id}: committed, 1 staged" in said
    assert "kill -9 identity" in said
    assert "profiles, back" not in said
    assert stranger.asked["email"] not in said
