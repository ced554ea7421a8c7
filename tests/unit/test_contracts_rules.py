"""The shape rules of the contracts are in force on generated messages; none is a comment nobody reads."""

from __future__ import annotations

import importlib
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import message_factory
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.type import postal_address_pb2

from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.validation import _nested, violations
from tandem.v1 import operations_pb2, participant_pb2, transaction_pb2

ROOT = Path(__file__).parents[2]
GENERATED = sorted((ROOT / "tandem").rglob("*_pb2.py"))
LOG_ID = "0190a5a0-0000-4000-8000-000000000000"
COUNTRIES = {
    first + second
    for first, seconds in {
        "A": "DEFGILMOQRSTUWXZ",
        "B": "ABDEFGHIJLMNOQRSTVWYZ",
        "C": "ACDFGHIKLMNORUVWXYZ",
        "D": "EJKMOZ",
        "E": "CEGHRST",
        "F": "IJKMOR",
        "G": "ABDEFGHILMNPQRSTUWY",
        "H": "KMNRTU",
        "I": "DELMNOQRST",
        "J": "EMOP",
        "K": "EGHIMNPRWYZ",
        "L": "ABCIKRSTUVY",
        "M": "ACDEFGHKLMNOPQRSTUVWXYZ",
        "N": "ACEFGILOPRUZ",
        "O": "M",
        "P": "AEFGHKLMNRSTWY",
        "Q": "A",
        "R": "EOSUW",
        "S": "ABCDEGHIJKLMNORSTVXYZ",
        "T": "CDFGHJKLMNORTVWZ",
        "U": "AGMSYZ",
        "V": "ACEGINU",
        "W": "FS",
        "X": "K",
        "Y": "ET",
        "Z": "AMW",
    }.items()
    for second in seconds
}
"""ISO 3166-1 alpha-2, and XK."""

KEY = transaction_pb2.TransactionKey(coordinator="identity", transaction_id="0190a5a0-0000-7000-8000-000000000000")


def _rules_broken(message: Message) -> set[tuple[str, str]]:
    """(path of the field, id of the rule) of each violation."""
    return {(_path(v.proto), v.proto.rule_id or "") for v in protovalidate.collect_violations(message)}


def _path(violation: protovalidate.ViolationPb) -> str:
    elements = violation.field.elements if violation.field else ()
    return ".".join(f"{e.field_name}{'[]' if e.subscript else ''}" for e in elements)


def _messages(descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
    for descriptor in descriptors:
        yield descriptor
        yield from _messages(descriptor.nested_types)


def _all_messages() -> list[Descriptor]:
    found: list[Descriptor] = []
    for path in GENERATED:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        file = importlib.import_module(name).DESCRIPTOR
        found += _messages(file.message_types_by_name.values())
    return found


@pytest.mark.parametrize("descriptor", _all_messages(), ids=lambda d: d.full_name)
def test_every_rule_compiles(descriptor: Descriptor) -> None:
    """A mistyped rule or expression raises only when its message is first validated: do it here for each."""
    protovalidate.collect_violations(message_factory.GetMessageClass(descriptor)())


def test_a_good_prepare_breaks_no_rule() -> None:
    """The counterpart of all that follows: rules are not simply always broken."""
    assert _rules_broken(_prepare()) == set()


def test_required_and_bounded_fields() -> None:
    """`required`, string patterns, durations and the size of a list, also in a nested message."""
    assert _rules_broken(participant_pb2.PrepareRequest()) >= {
        ("key", "required"),
        ("ttl", "required"),
        ("writes", "repeated.min_items"),
    }
    bad = _prepare()
    bad.key.transaction_id = "0190A5A0-0000-4000-8000-000000000000"
    bad.log_id = "log"
    bad.ttl.CopyFrom(Duration(seconds=1))
    bad.writes.extend([Any()] * 1000)
    assert _rules_broken(bad) == {
        ("key.transaction_id", "string.pattern"),
        ("log_id", "string.uuid"),
        ("ttl", "duration.gte_lte"),
        ("writes", "repeated.max_items"),
    }


def test_items_and_expressions() -> None:
    """Rules on the items of a list, and rules written in CEL."""
    person = person_pb2.Person(
        name=person_pb2.PersonName(display_name="Ada"),
        phone_numbers=["+12022243441", "0"],
        email_addresses=["a@example.com", "a@example.com"],
    )
    person.date_of_birth.year, person.date_of_birth.month, person.date_of_birth.day = 2001, 2, 29
    assert _rules_broken(person) == {
        ("phone_numbers[]", "string.pattern"),
        ("email_addresses", "repeated.unique"),
        ("date_of_birth", "date.valid"),
    }


def test_a_country_is_one_of_iso_3166() -> None:
    """All that are assigned, Kosovo's XK, and no other pair of letters; alike wherever a country is asked for."""
    letters = string.ascii_uppercase
    for code in (a + b for a in letters for b in letters):
        is_one = code in COUNTRIES
        tax = person_pb2.TaxIdentifier(type=person_pb2.TaxIdentifier.TYPE_SSN, country=code, value="123")
        assert (_rules_broken(tax) == set()) is is_one, code
    for code in ("QQ", "us", "USA", "", "U", "SU"):
        name = person_pb2.PersonName(display_name="Ada")
        address = postal_address_pb2.PostalAddress(region_code=code, address_lines=["1 Main Street"])
        person = person_pb2.Person(name=name, nationalities=[code], postal_addresses=[address])
        assert _rules_broken(person) == {("nationalities[]", "country"), ("postal_addresses[]", "postal_address.valid")}
    business = business_pb2.Business(
        legal_name="A", entity_type=business_pb2.ENTITY_TYPE_TRUST, registration_country="QQ", registration_number="1"
    )
    assert _rules_broken(business) == {("registration_country", "country")}


@pytest.mark.parametrize("name", ["\x1b[31mAda", "Ada\nAdmin", "Ada\u202enimda", "\u2066Ada", "A\x7f", "A\x85"])
def test_a_name_can_be_shown(name: str) -> None:
    """No control characters, and none that reverse what follows on somebody's screen."""
    person = person_pb2.PersonName(given_name=name, middle_name=name, family_name=name, suffix=name, display_name=name)
    fields = ("given_name", "middle_name", "family_name", "suffix", "display_name")
    assert _rules_broken(person) == {(field, "text.control") for field in fields}
    business = business_pb2.Business(
        legal_name=name,
        trade_names=[name],
        entity_type=business_pb2.ENTITY_TYPE_TRUST,
        addresses=[postal_address_pb2.PostalAddress(region_code="US", address_lines=[name])],
    )
    assert _rules_broken(business) == {
        ("legal_name", "text.control"),
        ("trade_names[]", "text.control"),
        ("addresses[]", "postal_address.valid"),
    }


@pytest.mark.parametrize("name", ["Zoë O'Brien-Ñandú", "عَلِيّ", "می\u200cخواهم", "李小龍", "Ng", "X Æ A-12"])
def test_a_name_is_written_as_its_bearer_writes_it(name: str) -> None:
    """Any script, and the joiners that some need."""
    assert _rules_broken(person_pb2.PersonName(given_name=name, display_name=name)) == set()


@pytest.mark.parametrize("kind", ["Prepare", "Commit", "Abort"])
def test_a_batch_is_measured_but_its_items_are_left_alone(kind: str) -> None:
    """Items are validated and answered one by one: a bad one must not fail its neighbours."""
    batch = getattr(participant_pb2, f"Batch{kind}Request")
    bad_item = getattr(participant_pb2, f"{kind}Request")()
    assert _rules_broken(bad_item)
    assert _rules_broken(batch()) == {("requests", "repeated.min_items")}
    assert _rules_broken(batch(requests=[bad_item] * 1000)) == set()
    assert _rules_broken(batch(requests=[bad_item] * 1001)) == {("requests", "repeated.max_items")}


@pytest.mark.parametrize("kind", [operations_pb2.ForceTransactionRequest, operations_pb2.ResolveNowRequest])
def test_who_and_why_are_texts_that_can_be_kept_and_shown(kind: Callable[..., Message]) -> None:
    """Both are written down and shown in terminals: a name of one line, a reason that may have several."""
    outcome = {"outcome": transaction_pb2.TRANSACTION_STATE_ABORTED} if "outcome" in _fields(kind) else {}

    def broken(actor: str, reason: str) -> set[tuple[str, str]]:
        return _rules_broken(kind(key=KEY, actor=actor, reason=reason, **outcome))

    for actor, reason in (("a", "why"), ("Zoë Żółć", "x" * 500), ("é" * 100, "one\r\n\ttwo")):
        assert broken(actor, reason) == set()
    for actor in (" ", "a\nb", "\x1b[2J", "a\x9b"):
        assert broken(actor, "why") == {("actor", "actor.printable")}
    for reason in ("   ", "why\x00", "why\x1b[2J"):
        assert broken("ada", reason) == {("reason", "reason.printable")}
    assert ("actor", "string.min_len") in broken("", "why")
    assert broken("x" * 101, "no") == {("actor", "string.max_len"), ("reason", "string.min_len")}
    assert broken("ada", "x" * 501) == {("reason", "string.max_len")}


def _fields(kind: Callable[..., Message]) -> set[str]:
    return set(kind().DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("outcome", sorted(transaction_pb2.TransactionState.values()))
def test_only_an_outcome_can_be_forced(outcome: int) -> None:
    """Committed or aborted; not prepared, not nothing."""
    request = operations_pb2.ForceTransactionRequest(key=KEY, outcome=outcome, actor="ada", reason="why")  # type: ignore[arg-type]
    is_one = outcome in (transaction_pb2.TRANSACTION_STATE_COMMITTED, transaction_pb2.TRANSACTION_STATE_ABORTED)
    assert _rules_broken(request) == (set() if is_one else {("outcome", "enum.in")})


def _prepare() -> participant_pb2.PrepareRequest:
    write = Any()
    write.Pack(person_pb2.Person(name=person_pb2.PersonName(display_name="Ada")))
    return participant_pb2.PrepareRequest(
        key=KEY,
        log_id=LOG_ID,
        ttl=Duration(seconds=60),
        driver_deadline=Duration(seconds=7),
        writes=[write],
    )


def test_what_is_too_long_is_refused_before_each_item_is_looked_at() -> None:
    """R16: a list of 40,000 costs its sender more than its reader; the field and its limit are named."""
    person = person_pb2.Person(postal_addresses=[{}] * 40_000, tax_identifiers=[{}] * 40_000)
    business = business_pb2.Business(people=[{}] * 40_000)
    assert [(one.field, one.rule) for one in [*violations(person), *violations(business)]] == [
        ("postal_addresses", "repeated.max_items"),
        ("tax_identifiers", "repeated.max_items"),
        ("people", "repeated.max_items"),
    ]


def test_every_list_of_a_request_has_a_limit() -> None:
    """R16: or the one above would be an exception."""
    answers = ("Response", "Result", "DecisionRecord", "identity.v1.Business")
    unlimited = [
        f"{descriptor.full_name}.{field.name}"
        for descriptor in _all_messages()
        for field in _nested(descriptor)
        if field.repeated and field.most is None and not descriptor.full_name.endswith(answers)
    ]
    assert unlimited == []
