"""Processes and servers that die, for real."""
