"""The coordinator: the initiator's driver, its decision log, and the service that answers for its decisions."""
