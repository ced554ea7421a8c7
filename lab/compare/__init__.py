"""Compares the designs of docs/designs.md: same load, same faults, real processes. Entrance: `scripts/compare`."""
