"""Writes the tables of docs/configuration.md from the settings of the three processes, and those of docs/metrics.md
from the metrics themselves, or checks that they are fresh.

Run it through `scripts/docs`, which provides the environment. A table stands between two comments of the page,
`<!-- settings: NAME -->` or `<!-- metrics: NAME -->`, and `<!-- end -->`; the text around them is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = "shared"
BLOCK = re.compile(r"(<!-- (?:settings|metrics): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Setting = tuple[str, str, str]
Metric = tuple[str, str, tuple[str, ...], str, str]
"""Name as it is asked for, type, labels, where it comes from, meaning."""


def metrics() -> dict[str, list[Metric]]:
    """Table → its metrics, as the library registers them; no database is asked."""
    from prometheus_client import CollectorRegistry

    from identity_stub.gauges import AccountGauges
    from identity_stub.settling import SettlingMetrics
    from tandem.coordinator.gauges import CoordinatorGauges
    from tandem.coordinator.metrics import CoordinatorMetrics
    from tandem.kafka.gauges import OutboxGauges
    from tandem.kafka.metrics import KafkaMetrics
    from tandem.kafka.outbox import outbox_table
    from tandem.participant.gauges import ParticipantGauges
    from tandem.participant.metrics import ParticipantMetrics
    from tandem.runtime.database import create_engine
    from tandem.runtime.process import build_info
    from tandem.runtime.rpc_metrics import ServerCalls
    from tandem.runtime.server import count_pending

    everywhere, participant, coordinator, kafka, accounts = (CollectorRegistry() for _ in range(5))
    nowhere = create_engine("postgresql://")
    build_info("any", everywhere)
    ServerCalls(everywhere)
    count_pending((), everywhere)
    ParticipantMetrics(participant)
    participant.register(ParticipantGauges(nowhere, ()))
    CoordinatorMetrics(coordinator)
    coordinator.register(CoordinatorGauges(nowhere, name="any", participants=()))
    KafkaMetrics(kafka)
    kafka.register(OutboxGauges(nowhere, outbox_table("any")))
    SettlingMetrics(accounts)
    accounts.register(AccountGauges(nowhere))
    registries = {
        "everywhere": everywhere,
        "participant": participant,
        "coordinator": coordinator,
        "kafka": kafka,
        "accounts": accounts,
    }
    return {name: _registered(registry) for name, registry in registries.items()}


def _registered(registry: Any) -> list[Metric]:
    """In the order of their registration. The client library has no public way to a metric's labels."""
    from tandem.runtime.gauges import DatabaseCollector

    found: list[Metric] = []
    for collector in registry._collector_to_names:
        source = "database" if isinstance(collector, DatabaseCollector) else "process"
        for family in collector.describe():
            labels = (family if source == "database" else collector)._labelnames
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found.append((name, family.type, tuple(labels), source, family.documentation))
    return found


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


def metric_tables(described: dict[str, list[Metric]]) -> dict[str, str]:
    """The tables of the page of metrics."""
    head = ["| metric | type | labels | from | meaning |", "|---|---|---|---|---|"]
    rows = {
        table: [
            f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {source} | {meaning} |"
            for name, kind, labels, source, meaning in some
        ]
        for table, some in described.items()
    }
    return {table: "\n".join([*head, *some]) + "\n" for table, some in rows.items()}


def rendered(page: str, made: dict[str, str]) -> str:
    """The page with its tables replaced. Raises KeyError for a table that nobody makes, ValueError for one left out."""
    if missing := made.keys() - {match[2] for match in BLOCK.finditer(page)}:
        raise ValueError(f"the page has no place for {', '.join(sorted(missing))}")
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
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    asked = parser.parse_args()
    made = {"configuration.md": tables(settings()), "metrics.md": metric_tables(metrics())}
    stale = False
    for name, some in made.items():
        page = ROOT / "docs" / name
        before = page.read_text()
        after = rendered(before, some)
        if before == after:
            continue
        if asked.check:
            stale = True
            print(f"{page.relative_to(ROOT)} is out of date: run scripts/docs", file=sys.stderr)
        else:
            page.write_text(after)
            print(f"wrote {page.relative_to(ROOT)}")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
