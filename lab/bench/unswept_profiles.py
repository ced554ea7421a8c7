"""The profiles process whose sweeper runs once, at its start: a measurement sweeps by itself.

No setting allows that, since what a crash leaves in doubt would stay. `python -m lab.bench.unswept_profiles`.
"""

from __future__ import annotations

from profiles_server import app
from profiles_server.config import Settings
from tandem.runtime.config import load

INTERVAL_S = 86_400.0
"""Longer than any measurement takes."""


def main() -> None:
    """Serves until it is told to stop."""
    app.serve(load(Settings).model_copy(update={"sweep_interval_s": INTERVAL_S}))


if __name__ == "__main__":
    main()
