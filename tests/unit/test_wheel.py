"""The wheel: what it holds, and that it behaves in a project that is not ours."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


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
