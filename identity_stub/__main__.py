"""`python -m identity_stub`."""

from identity_stub.cli import cli

cli(prog_name="python -m identity_stub")
