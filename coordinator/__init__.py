"""The coordinator process: answers for an initiator's decisions and pushes those that are not delivered yet.

It lies beside the initiator, over the same database. An initiator in Python can serve the same in its own process.
"""
