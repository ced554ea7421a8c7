"""Two services, two databases, one transaction: a two-phase-commit coordinator and participant over gRPC."""
