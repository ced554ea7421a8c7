"""Alembic's entrance: everything is in tandem.runtime.migrations."""

from tandem.runtime.migrations import run_env

run_env()
