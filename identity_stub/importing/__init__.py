"""The import of real people and businesses from two CSV files, over the gRPC API.

persons, businesses = read_persons(path), read_businesses(path)      rows, each a profile or why it is none
result = run_import(target, plan(persons, businesses))               repeatable: an interrupted one is run again
"""

from identity_stub.importing.planning import Job, Plan, plan
from identity_stub.importing.reading import Rejected, Row, read_businesses, read_persons
from identity_stub.importing.running import Done, Result, run_import

__all__ = [
    "Done",
    "Job",
    "Plan",
    "Rejected",
    "Result",
    "Row",
    "plan",
    "read_businesses",
    "read_persons",
    "run_import",
]
