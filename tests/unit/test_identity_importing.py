"""Every row of the real files becomes a valid profile or is reported; the plan is the same whoever makes it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from google.type import date_pb2

from identity_stub.importing import Rejected, Row, plan, read_businesses, read_persons
from identity_stub.importing.planning import batches
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.errors import ConfigurationError
from tandem.runtime.validation import violations

DATA = Path(__file__).parents[2] / "identity_stub" / "data"
PERSONS, BUSINESSES = read_persons(DATA / "persons.csv"), read_businesses(DATA / "businesses.csv")


def person(key: str) -> Row[person_pb2.Person]:
    return next(row for row in PERSONS if isinstance(row, Row) and row.key == key)


def business(key: str) -> Row[business_pb2.Business]:
    return next(row for row in BUSINESSES if isinstance(row, Row) and row.key == key)


def header_and(tmp_path: Path, source: str, **cells: str) -> Path:
    """The real file's header and first row, with some cells changed."""
    header, first = (DATA / source).read_text(encoding="utf-8").splitlines()[:2]
    row = dict(zip(header.split(","), next(csv.reader([first])), strict=True)) | cells
    path = tmp_path / source
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(row.keys())
        writer.writerow(row.values())
    return path


def test_every_row_of_the_real_files_is_valid() -> None:
    """537 persons and 503 businesses, none rejected; three are second share classes of a company before them."""
    assert (len(PERSONS), len(BUSINESSES)) == (537, 503)
    rows = [row for row in (*PERSONS, *BUSINESSES) if isinstance(row, Row)]
    assert len(rows) == 537 + 503
    assert not [row for row in rows if violations(row.profile)]
    numbers = Counter(row.profile.registration_number for row in BUSINESSES if isinstance(row, Row))
    assert sum(count - 1 for count in numbers.values()) == 3
    assert len({row.email for row in PERSONS if isinstance(row, Row)}) == 537


def test_what_is_cleaned_is_said() -> None:
    """Nothing is left out without a note, and only these."""
    notes = Counter(note for row in (*PERSONS, *BUSINESSES) if isinstance(row, Row) for note in row.notes)
    assert notes == {
        "full_name composed of its parts": 2,
        "no office_phone": 1,
        "no office_address": 1,
        "Founded: only its first year is kept": 39,
        "Headquarters Location: footnotes left out": 2,
        "no Headquarters Location": 1,
    }


def test_a_person() -> None:
    """Names in any script, the office as an address, the phone in E.164 form."""
    row = person("V000081")
    assert row.profile.name.display_name == "Nydia M. Velázquez"
    assert row.email == "v000081@example.org" == row.profile.email_addresses[0]
    cantwell = person("C000127").profile
    assert cantwell.phone_numbers == ["+12022243441"]
    assert cantwell.date_of_birth == date_pb2.Date(year=1958, month=10, day=13)
    (office,) = cantwell.postal_addresses
    assert (office.region_code, office.administrative_area, office.locality) == ("US", "DC", "Washington")
    assert (list(office.address_lines), office.postal_code) == (["511 Hart Senate Office Building"], "20510")
    assert person("M001246").profile.name.display_name == "Analilia Mejia"


def test_every_office_address_is_taken_apart() -> None:
    """None of the real ones has to stay in one line."""
    offices = [a for row in PERSONS if isinstance(row, Row) for a in row.profile.postal_addresses]
    assert len(offices) == 536
    assert {(a.locality, a.administrative_area) for a in offices} == {("Washington", "DC")}


def test_a_business() -> None:
    """The register's number is the CIK, the year the first one named, the sector its two digits."""
    abbvie = business("ABBV").profile
    assert (abbvie.legal_name, abbvie.registration_country, abbvie.registration_number) == ("AbbVie", "US", "1551152")
    assert abbvie.incorporation_date == date_pb2.Date(year=2013)
    assert (abbvie.industry.scheme, abbvie.industry.code) == (business_pb2.Industry.SCHEME_GICS, "35")
    assert not abbvie.trade_names


@pytest.mark.parametrize(
    ("symbol", "places"),
    [
        ("MMM", [("US", "MN", "Saint Paul")]),
        ("ACN", [("IE", "", "Dublin")]),
        ("HBAN", [("US", "OH", "Columbus"), ("US", "MI", "Detroit")]),
        ("XYZ", []),
    ],
)
def test_headquarters(symbol: str, places: list[tuple[str, str, str]]) -> None:
    """A city with a state or a country, two of them, or none."""
    found = [(a.region_code, a.administrative_area, a.locality) for a in business(symbol).profile.addresses]
    assert found == places


def test_headquarters_in_a_region_of_another_country() -> None:
    """`Warmley, Bristol, United Kingdom`: the middle is the region."""
    (place,) = next(
        list(row.profile.addresses)
        for row in BUSINESSES
        if isinstance(row, Row) and row.profile.addresses and row.profile.addresses[0].locality == "Warmley"
    )
    assert (place.region_code, place.administrative_area) == ("GB", "Bristol")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"bioguide": "C12"}, "bioguide must be"),
        ({"birthday": "13.10.1958"}, "birthday must be"),
        ({"birthday": "1758-10-13"}, "date_of_birth: must be a full calendar date"),
        ({"office_phone": "224-3441"}, "office_phone must be"),
        ({"full_name": "", "given_name": "", "middle_name": "", "family_name": ""}, "name.display_name: "),
    ],
)
def test_persons_that_can_not_be_imported(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    """Each is reported by its line with the reason, which repeats nothing of what the row says."""
    (row,) = read_persons(header_and(tmp_path, "persons.csv", **cells))
    assert isinstance(row, Rejected)
    assert row.line == 2
    assert row.reason.startswith(reason)
    assert not [cell for cell in cells.values() if cell and cell in row.reason]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"CIK": "66-740"}, "CIK must be"),
        ({"GICS Sector": "Alchemy"}, "GICS Sector is none"),
        ({"Founded": "long ago"}, "Founded must begin"),
        ({"Headquarters Location": "Vaduz, Liechtenstein"}, "Headquarters Location must end"),
        ({"Security": ""}, "legal_name: "),
        ({"Founded": "3000"}, "incorporation_date: must not be in the future"),
    ],
)
def test_businesses_that_can_not_be_imported(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    """Likewise."""
    (row,) = read_businesses(header_and(tmp_path, "businesses.csv", **cells))
    assert isinstance(row, Rejected)
    assert row.reason.startswith(reason), row.reason


def test_files_that_are_none(tmp_path: Path) -> None:
    """What is wrong with the file as a whole is said at once; a wrong row is one row's affair."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.csv can't be read"):
        read_persons(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigurationError, match="lacks the columns bioguide, "):
        read_persons(DATA / "businesses.csv")
    latin = tmp_path / "latin.csv"
    latin.write_bytes((DATA / "persons.csv").read_text(encoding="utf-8").replace("given_name", "né").encode("latin-1"))
    with pytest.raises(ConfigurationError, match="its header is not in UTF-8"):
        read_persons(latin)


def test_rows_that_do_not_fit_the_file(tmp_path: Path) -> None:
    """Too few cells, and a key that was there: each said of its line."""
    doubled = tmp_path / "doubled.csv"
    first = (DATA / "persons.csv").read_text(encoding="utf-8").splitlines()[:2]
    doubled.write_text("\n".join([*first, "C000127,too,short", "", first[1]]), encoding="utf-8")
    one, short, again = read_persons(doubled)
    assert isinstance(one, Row)
    assert short == Rejected(3, "has more or fewer cells than the header")
    assert again == Rejected(5, "bioguide is the same as in line 2")


def test_a_row_that_can_not_be_read_is_one_rows_affair(tmp_path: Path) -> None:
    """By its line, with the reason, and never with what stands in it; the rows around it are imported."""
    header, good, *more = (DATA / "persons.csv").read_bytes().splitlines()[:6]
    name = more[0].split(b",")[1]
    reasons = {
        b"Jos\xe9": "is not in UTF-8",
        b"Jo\0se": "holds a NUL character",
        b'"Jo"se': "is no row of a CSV file",
        b'"Jose': "is no row of a CSV file",
        b"J" * 200_000: "is no row of a CSV file",
        b"J" * 300: "name.given_name: must be at most 200 characters",
    }
    for number, (wrong, reason) in enumerate(reasons.items()):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(b"\r\n".join([header, good, more[0].replace(name, wrong, 1), *more[1:], b""]))
        first, bad, *rest = read_persons(path)
        assert isinstance(first, Row)
        assert isinstance(bad, Rejected)
        assert (bad.line, bad.reason.startswith(reason)) == (3, True), bad
        assert [row.line for row in rest if isinstance(row, Row)] == [4, 5, 6]


def test_the_plan_pairs_rows_in_order() -> None:
    """503 pairs, then 34 persons alone; a second share class comes after the first."""
    made = plan(PERSONS, BUSINESSES)
    assert (len(made.jobs), made.persons, made.businesses) == (537, 537, 503)
    assert [job.business is None for job in made.jobs] == [False] * 503 + [True] * 34
    assert len({job.request_id for job in made.jobs}) == 537
    seconds = {job.business.key: made.jobs[job.after[0]].business for job in made.jobs if job.after and job.business}
    assert {(key, first.key) for key, first in seconds.items() if first} == {
        ("GOOG", "GOOGL"),
        ("FOX", "FOXA"),
        ("NWS", "NWSA"),
    }
    assert plan(PERSONS, BUSINESSES) == made


def test_a_plan_with_few_persons() -> None:
    """Further businesses go to the persons in turn, each after its owner; without a person there are none."""
    made = plan(PERSONS[:2], BUSINESSES[:5])
    assert [(job.person is not None, job.owner, job.after) for job in made.jobs] == [
        (True, None, ()),
        (True, None, ()),
        (False, 0, (0,)),
        (False, 1, (1,)),
        (False, 0, (0,)),
    ]
    orphaned = plan([Rejected(2, "no")], BUSINESSES[:2])
    assert not orphaned.jobs
    assert [file for file, _ in orphaned.rejected] == ["persons", "businesses", "businesses"]


def test_pairs_go_together_in_the_plans_order() -> None:
    """Each job once, in order; whoever waits for another, or is no pair, alone; none of a batch waits for another."""
    jobs = plan(PERSONS, BUSINESSES).jobs
    made = list(batches(jobs, 50))
    assert [position for batch in made for position in batch] == list(range(537))
    assert max(map(len, made)) == 50
    alone = [jobs[position] for batch in made for position in batch if not jobs[position].in_company]
    assert len(alone) == 34 + 3
    assert all(len(batch) == 1 for batch in made for position in batch if not jobs[position].in_company)
    assert len([batch for batch in made if len(batch) > 1]) <= 503 / 50 + 4
    assert not list(batches([], 50))
