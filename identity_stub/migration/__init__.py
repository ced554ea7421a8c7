"""The migration of accounts from before there were profiles. The steps in order: docs/migration.md."""
