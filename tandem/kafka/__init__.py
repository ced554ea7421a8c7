"""Messages through Kafka, for the designs that need them: at least once, in the order of their keys, never trusted.

Correctness never rests on Kafka: a message is written down in the database that decides (a decision log, an outbox)
before it is published, whoever takes it up writes that down with what it does (an inbox, a transaction's own row), and
a message that was reported as failed may still arrive. Kafka's transactions are not used.

    outbox ──relay──▶ topic ──consumer──▶ handler, one local transaction ──▶ offsets
                                     └──▶ <topic>.dead, for a person

    publisher.py     publishes and waits for the broker's acknowledgement (acks=all, idempotent)
    consumer.py      run_once(): takes, has handled, buries what can't be, then commits the offsets
    outbox.py        the table of what is to be published; relay.py: run_once() publishes it
    inbox.py         the table of what was taken up
    decisions.py     decisions that travel by Kafka instead of by a Commit
    dead_letters.py  looking at what was buried, and replaying it; cli.py: the same for operators

Needs the extra `kafka` (confluent-kafka); not so the settings, the tables, the messages and the handlers. A process
that has used any of it must not fork afterwards: the client's threads do not come along.
"""
