"""Generates the Python code of every contract in protos/, or checks that what is committed is up to date.

Run it through `scripts/protos`, which provides the environment. What it does:

1. gathers the third-party .proto files that ours import in build/protos/ (untracked). They come from
   installed, pinned packages, never from the network: google/rpc and google/type lie in
   googleapis-common-protos; buf/validate/validate.proto is printed from the descriptor in protovalidate;
2. runs the pinned protoc, so that protos/tandem/v1/x.proto becomes tandem/v1/x_pb2.py and .pyi and, if it
   declares a service, x_pb2_grpc.py and .pyi;
3. makes the generated code import `tandem._validate` where protoc wrote `buf.validate.validate_pb2`, a module
   that protovalidate 2.x does not have.

`buf lint`, `buf breaking` and editors find the files of step 1 by buf.yaml; in a fresh checkout run
`scripts/protos --imports` once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import google.rpc.status_pb2
import google.type.date_pb2
import protovalidate
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
IMPORTS = ROOT / "build" / "protos"
PACKAGE = "tandem"
HAND_WRITTEN = (PACKAGE, f"{PACKAGE}/profiles")
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

BUF_IMPORT = "from buf.validate import validate_pb2"
OUR_IMPORT = f"from {PACKAGE} import _validate"

Field = descriptor_pb2.FieldDescriptorProto


class Failure(Exception):
    """Something that the person at the terminal has to put right; its text says what."""


# --- third-party imports ------------------------------------------------------------------------------------


def gather_imports() -> None:
    """Fill build/protos/ with the third-party files that ours may import. Writes only what has changed."""
    wanted = {"buf/validate/validate.proto": print_file(validate_descriptor())}
    for module in (google.rpc.status_pb2, google.type.date_pb2):
        folder = Path(str(module.__file__)).parent
        wanted |= {f"google/{folder.name}/{p.name}": p.read_text() for p in folder.glob("*.proto")}
    for path in [p for p in IMPORTS.rglob("*.proto") if p.relative_to(IMPORTS).as_posix() not in wanted]:
        path.unlink()
    changed = [name for name, text in wanted.items() if not same(IMPORTS / name, text)]
    for name in changed:
        write(IMPORTS / name, wanted[name])
    if "buf/validate/validate.proto" in changed:
        prove_validate_proto()


def validate_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """What the installed protovalidate says buf/validate/validate.proto is, without options."""
    serialized = protovalidate.ViolationPb.desc().file.proto.to_binary()
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    without_options(file)
    return file


def prove_validate_proto() -> None:
    """Compile the printed file and compare: nothing that the printer does not know may pass unnoticed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "set")
        protoc([IMPORTS], [f"--descriptor_set_out={out}"], ["buf/validate/validate.proto"])
        printed = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    without_options(printed)
    if printed != validate_descriptor():
        (IMPORTS / "buf/validate/validate.proto").unlink()
        raise Failure(
            "buf/validate/validate.proto of the installed protovalidate uses something that "
            "print_file() in scripts/_protos.py cannot print yet."
        )


def without_options(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Strip all options: they hold the rules' own CEL, which only the validator needs, and has."""

    def strip(message: descriptor_pb2.DescriptorProto) -> None:
        for part in (
            message,
            *message.field,
            *message.extension,
            *message.oneof_decl,
            *message.extension_range,
        ):
            part.ClearField("options")
        for enum in message.enum_type:
            strip_enum(enum)
        for nested in message.nested_type:
            strip(nested)

    def strip_enum(enum: descriptor_pb2.EnumDescriptorProto) -> None:
        for part in (enum, *enum.value):
            part.ClearField("options")

    file.ClearField("options")
    for message in file.message_type:
        strip(message)
    for enum in file.enum_type:
        strip_enum(enum)
    for extension in file.extension:
        extension.ClearField("options")


# --- a descriptor as .proto text ----------------------------------------------------------------------------


def print_file(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The .proto text of a proto2 or proto3 file without services; `prove_validate_proto` checks it."""
    lines = [
        f"// {file.name} as the installed protovalidate has it, without options.",
        "// Printed by scripts/protos for protoc and buf; neither committed nor shipped.",
        f'syntax = "{file.syntax or "proto2"}";',
        f"package {file.package};",
        *(f'import "{name}";' for name in file.dependency),
    ]
    for enum in file.enum_type:
        lines += print_enum(enum)
    for message in file.message_type:
        lines += print_message(message)
    for extension in file.extension:
        lines += [f"extend {extension.extendee} {{", f"  {print_field(extension)}", "}"]
    return "\n".join(lines) + "\n"


def print_message(message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    yield f"message {message.name} {{"
    for enum in message.enum_type:
        yield from indented(print_enum(enum))
    for nested in message.nested_type:
        yield from indented(print_message(nested))
    open_oneof: str | None = None
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        if oneof != open_oneof:
            if open_oneof:
                yield "  }"
            if oneof:
                yield f"  oneof {oneof} {{"
            open_oneof = oneof
        yield f"  {print_field(field)}"
    if open_oneof:
        yield "  }"
    for taken in message.reserved_range:  # its end is exclusive
        yield f"  reserved {taken.start} to {taken.end - 1};"
    for name in message.reserved_name:
        yield f'  reserved "{name}";'
    for free in message.extension_range:  # its end is exclusive, too
        yield f"  extensions {free.start} to {free.end - 1 if free.end < 0x20000000 else 'max'};"
    yield "}"


def print_field(field: descriptor_pb2.FieldDescriptorProto) -> str:
    label = "" if field.HasField("oneof_index") else Field.Label.Name(field.label)[len("LABEL_") :].lower() + " "
    kind = field.type_name or Field.Type.Name(field.type)[len("TYPE_") :].lower()
    default = f" [default = {field.default_value}]" if field.HasField("default_value") else ""
    return f"{label}{kind} {field.name} = {field.number}{default};"


def print_enum(enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    for value in enum.value:
        yield f"  {value.name} = {value.number};"
    for taken in enum.reserved_range:  # its end is inclusive
        yield f"  reserved {taken.start} to {taken.end};"
    for name in enum.reserved_name:
        yield f'  reserved "{name}";'
    yield "}"


def indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


# --- our own contracts --------------------------------------------------------------------------------------


def generate() -> dict[str, str]:
    """All generated files: path from the project's root → text. `__init__.py` files are not among them."""
    sources = sorted(p.relative_to(PROTOS).as_posix() for p in PROTOS.rglob("*.proto"))
    if not sources:
        raise Failure(f"There is no .proto file in {PROTOS}.")
    if strays := [s for s in sources if not s.startswith(f"{PACKAGE}/")]:
        raise Failure(f"Contracts belong in protos/{PACKAGE}/, these do not: {', '.join(strays)}")
    with tempfile.TemporaryDirectory() as folder:
        out, descriptors = Path(folder, "out"), Path(folder, "set")
        out.mkdir()
        protoc(
            [PROTOS, IMPORTS],
            [
                f"--plugin=protoc-gen-mypy={tool('protoc-gen-mypy')}",
                f"--plugin=protoc-gen-mypy_grpc={tool('protoc-gen-mypy_grpc')}",
                f"--descriptor_set_out={descriptors}",
                f"--python_out={out}",
                f"--mypy_out=quiet:{out}",
                f"--grpc_python_out={out}",
                f"--mypy_grpc_out=quiet:{out}",
            ],
            sources,
        )
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes()).file
        with_service = {f.name.removesuffix(".proto") for f in files if f.service}
        generated = {}
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            name = path.relative_to(out).as_posix()
            stem, _, kind = name.rpartition("_pb2")
            # For a file without services, the gRPC plugins write modules with nothing in them.
            if kind.startswith("_grpc") and stem not in with_service:
                continue
            generated[name] = rewrite_import(name, path.read_text())
        return generated


def rewrite_import(name: str, text: str) -> str:
    text = text.replace(BUF_IMPORT, OUR_IMPORT)
    if "buf.validate import" in text or "import buf" in text:
        raise Failure(f"{name} imports buf.validate in a way that scripts/_protos.py does not know how to replace.")
    return text


def committed() -> set[str]:
    """The generated files that lie in the package now."""
    return {p.relative_to(ROOT).as_posix() for p in (ROOT / PACKAGE).rglob("*_pb2*") if p.name.endswith(SUFFIXES)}


def missing_inits(generated: Iterable[str]) -> list[str]:
    """The packages around generated code that have no __init__.py, but for those that are written by hand."""
    folders = {folder.as_posix() for name in generated for folder in Path(name).parents} - {
        ".",
        *HAND_WRITTEN,
    }
    return [f"{f}/__init__.py" for f in sorted(folders) if not (ROOT / f / "__init__.py").is_file()]


def update(generated: dict[str, str]) -> None:
    for name in sorted(committed() - generated.keys()):
        (ROOT / name).unlink()
        print(f"removed {name}")
    for name in missing_inits(generated):
        write(ROOT / name, "")
        print(f"created {name}")
    for name, text in generated.items():
        if not same(ROOT / name, text):
            write(ROOT / name, text)
            print(f"wrote   {name}")


def check(generated: dict[str, str]) -> None:
    problems = [f"{name}: there is no .proto file for it" for name in sorted(committed() - generated.keys())]
    problems += [f"{name}: is missing" for name in missing_inits(generated)]
    for name, text in generated.items():
        path = ROOT / name
        if not path.is_file():
            problems.append(f"{name}: is missing")
        elif not same(path, text):
            problems.append(f"{name}: differs from what its .proto file says now\n{excerpt(path.read_text(), text)}")
    if problems:
        raise Failure("\n".join([*problems, "", "Generated code is out of date: run scripts/protos"]))


def excerpt(old: str, new: str, lines: int = 12) -> str:
    diff = difflib.unified_diff(old.splitlines(), new.splitlines(), "committed", "generated", n=0, lineterm="")
    shown = [f"    {line[:160]}" for line in diff]
    return "\n".join(shown[:lines] + ["    …"] * (len(shown) > lines))


def check_breaking(revision: str) -> None:
    """Compare protos/ with what a revision of the repository holds. Both get the same third-party files."""
    with tempfile.TemporaryDirectory() as folder:
        archive = ["git", "archive", "--format=tar", f"--output={folder}/before.tar", revision, "protos", "buf.yaml"]
        run(*archive)
        before = Path(folder, "before")
        shutil.unpack_archive(f"{folder}/before.tar", before)
        shutil.copytree(IMPORTS, before / IMPORTS.relative_to(ROOT))
        run(str(tool("buf")), "breaking", "--against", str(before))


# --- tools --------------------------------------------------------------------------------------------------


def protoc(includes: list[Path], arguments: list[str], sources: list[str]) -> None:
    run(sys.executable, "-m", "grpc_tools.protoc", *(f"-I{i}" for i in includes), *arguments, *sources)


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Failure((done.stderr + done.stdout).strip() or f"{command[0]} ended with {done.returncode}")


def tool(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise Failure(f"{path} is missing: run scripts/setup")
    return path


def same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: another process may be reading it.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/protos", description=__doc__.partition("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="write nothing; fail if the committed code is out of date")
    mode.add_argument("--breaking", metavar="REVISION", help="fail if clients built then would break now")
    mode.add_argument("--imports", action="store_true", help="only gather third-party files in build/protos/")
    asked = parser.parse_args()
    try:
        gather_imports()
        if asked.imports:
            return 0
        if asked.breaking:
            check_breaking(asked.breaking)
            return 0
        generated = generate()
        if asked.check:
            check(generated)
        else:
            update(generated)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
