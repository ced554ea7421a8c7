"""The wheel: what it holds, and that it behaves in a project that is not ours."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]

ISOLATED = "import runpy, sys; sys.path += sys.argv[2:]; runpy.run_path(sys.argv[2] + '/main.py', run_name='__main__')"
"""What is not in the folders that are named is not there: no site-packages, not even the working directory."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(ROOT, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, and nothing else, was installed."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--target", str(folder))
    _run(folder, "-m", "pip", "install", *options, str(wheel))
    return folder


@pytest.fixture
def database(new_database: Callable[[str], str]) -> str:
    """An empty one's URL."""
    return new_database("wheel")


def test_holds_the_library_and_nothing_else(wheel: Path) -> None:
    """Processes, laboratory, tests and contracts stay out: they would take names that belong to others."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "tandem",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    assert not [name for name in names if "__pycache__" in name]


def test_holds_every_module_of_the_library(wheel: Path) -> None:
    """Also migrations and generated code; a rule in .gitignore or in the build must not lose any."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("tandem/")}
    ours = {p.relative_to(ROOT).as_posix() for kind in ("*.py", "*.pyi") for p in (ROOT / "tandem").rglob(kind)}
    assert ours - held == set()


def test_asks_for_what_its_generated_code_needs(wheel: Path) -> None:
    """Generated code refuses an older grpcio or protobuf than its own; the metadata must refuse it before."""
    asked = {r.name: r.specifier for r in _requirements(wheel)}
    for path in (ROOT / "tandem").rglob("*_pb2*.py"):
        text = path.read_text()
        for name, pattern in (
            ("protobuf", r"# Protobuf Python Version: (\S+)"),
            ("grpcio", r"GRPC_GENERATED_VERSION = '(.+)'"),
        ):
            for version in re.findall(pattern, text):
                lowest = min(Version(s.version) for s in asked[name] if s.operator == ">=")
                assert lowest >= Version(version), (
                    f"{path.name} needs {name}>={version}: raise the bound in pyproject.toml"
                )


def test_lives_beside_a_project_with_packages_of_the_same_names(site: Path, tmp_path: Path) -> None:
    """`coordinator` and `protos` are common names; an importer of tandem keeps its own."""
    for package in ("coordinator", "protos", "lab", "tests"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "main.py").write_text(
        "import sys\n"
        "import tandem\n"
        "from tandem.v1 import participant_pb2, participant_pb2_grpc\n"
        "from tandem.profiles.v1 import profiles_service_pb2\n"
        "import protovalidate\n"
        "import coordinator, protos, lab, tests\n"
        "assert coordinator.MINE and protos.MINE and lab.MINE and tests.MINE\n"
        "request = participant_pb2.PrepareRequest()\n"
        "assert protovalidate.collect_violations(request), 'rules are in force'\n"
        "assert participant_pb2.PrepareRequest.FromString(request.SerializeToString()) == request\n"
        "print(tandem.__file__)\n"
    )
    assert _run(tmp_path, str(tmp_path / "main.py"), path=site) == f"{site / 'tandem' / '__init__.py'}\n"


def test_stands_on_what_it_asks_for(wheel: Path, site: Path, database: str, tmp_path: Path) -> None:
    """The wheel, what it asks for without extras, and nothing else: every module can be imported but those that need
    an extra, and beside a project with a `coordinator` of its own a transaction commits on both sides."""
    packages, project = tmp_path / "packages", tmp_path / "project"
    packages.mkdir()
    for name in _closure(wheel):
        for top in {file.parts[0] for file in distribution(name).files or ()} - {"..", "bin", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution(name).locate_file(top)))
    for package in ("coordinator", "protos"):
        (project / package).mkdir(parents=True)
        (project / package / "__init__.py").write_text("MINE = True\n")
    shutil.copy(ROOT / "tests" / "support" / "ledger.py", project)
    shutil.copy(ROOT / "tests" / "support" / "wheel_project.py", project / "main.py")
    folders = [str(folder) for folder in (project, site, packages)]
    said = _run(project, "-I", "-S", "-c", ISOLATED, database, *folders)
    assert said.splitlines()[-1] == "committed on both sides"


def _closure(wheel: Path) -> set[str]:
    """What the wheel asks for, and what that asks for in turn; an extra only where it is asked for."""
    met: set[tuple[str, str]] = set()
    waiting = _requirements(wheel)
    while waiting:
        asked = waiting.pop()
        for extra in {"", *asked.extras} - {extra for name, extra in met if name == asked.name}:
            met.add((asked.name, extra))
            further = map(Requirement, distribution(asked.name).requires or ())
            waiting += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in met}


def _requirements(wheel: Path) -> list[Requirement]:
    """What the wheel depends on; its extras left out."""
    requirements = [Requirement(line) for line in _metadata(wheel).get_all("Requires-Dist", [])]
    return [r for r in requirements if r.marker is None]


def _metadata(wheel: Path) -> Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(archive.read(name))


def _run(folder: Path, *arguments: str, path: Path | None = None) -> str:
    """What `python …` printed, run elsewhere: this project's folder must not be on the path by accident."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
