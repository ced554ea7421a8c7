"""Writes the tables of docs/configuration.md from the settings of the three processes, or checks that they are fresh.

Run it through `scripts/docs`, which provides the environment. A table stands between two comments of the page,
`<!-- settings: NAME -->` and `<!-- end -->`; the text around them is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
SHARED = "shared"
BLOCK = re.compile(r"(<!-- settings: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Setting = tuple[str, str, str]


def settings() -> dict[str, list[Setting]]:
    """Process → (variable, default, meaning) of each of its settings."""
    # The processes are beside the library in the checkout, not installed with it everywhere.
    sys.path.insert(0, str(ROOT))
    import coordinator.config
    import identity_stub.config
    import profiles_server.config
    from tandem.runtime.config import described

    modules = (coordinator.config, profiles_server.config, identity_stub.config)
    return {module.__name__.partition(".")[0]: described(module.Settings) for module in modules}


def tables(described: dict[str, list[Setting]]) -> dict[str, str]:
    """The page's tables: one of what all processes have with one default and one meaning, and one for each process.

    A shared setting is named without its prefix.
    """
    bare = {name: [(_bare(variable), *rest) for variable, *rest in some] for name, some in described.items()}
    first, *others = bare.values()
    shared = [setting for setting in first if all(setting in other for other in others)]
    own = {
        name: [setting for setting, plain in zip(some, bare[name], strict=True) if plain not in shared]
        for name, some in described.items()
    }
    return {
        SHARED: _table((f"…_{variable}", default, meaning) for variable, default, meaning in shared),
        **{name: _table(some) for name, some in own.items()},
    }


def rendered(page: str, made: dict[str, str]) -> str:
    """The page with its tables replaced. Raises KeyError for a table that nobody makes, ValueError for one left out."""
    if missing := made.keys() - {match[2] for match in BLOCK.finditer(page)}:
        raise ValueError(f"{PAGE.name} has no place for {', '.join(sorted(missing))}")
    return BLOCK.sub(lambda match: f"{match[1]}{made[match[2]]}{match[4]}", page)


def _bare(variable: str) -> str:
    return variable.partition("_")[2]


def _table(some: Iterable[Setting]) -> str:
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for variable, default, meaning in some:
        shown = default if default == "not set" else f"`{default}`"
        lines.append(f"| `{variable}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    asked = parser.parse_args()
    before = PAGE.read_text()
    after = rendered(before, tables(settings()))
    if before == after:
        return 0
    if asked.check:
        print(f"{PAGE.relative_to(ROOT)} is out of date: run scripts/docs", file=sys.stderr)
        return 1
    PAGE.write_text(after)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
