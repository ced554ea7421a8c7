"""`python -m identity_stub`."""

from identity_stub.cli import cli
from tandem.runtime.process import spare_collector

spare_collector()  # here, where the process is the command's own
cli(prog_name="python -m identity_stub")
