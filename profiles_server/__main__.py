"""`python -m profiles_server`."""

from profiles_server.cli import cli

cli(prog_name="python -m profiles_server")
