"""A model of the protocol, searched exhaustively: the shipped verdicts under every order of messages and every crash.

What it proves and what it does not: docs/protocol.md.
"""
