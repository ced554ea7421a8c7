"""Two services, two databases, one transaction: a two-phase-commit coordinator and participant over gRPC.

The initiator has rows of its own and wants others to come into being together with them, or not at all:

    from tandem.coordinator import Coordinator, Fenced, OutcomeUnknown, Refused, Unavailable

    coordinator = Coordinator(engine, name="identity", participants={"profiles": "dns:///profiles:50051"})

    with coordinator.transaction({"profiles": [person]}) as tx:                   # an Engine: tx.connection
        tx.connection.execute(insert(users).values(id=user_id))

    with coordinator.transaction({"profiles": [person]}, using=session) as tx:    # an ORM Session, flushed by us
        session.add(User(id=user_id))

    tx = coordinator.prepare({"profiles": [person]})      # the three calls it is made of, for any driver or event loop
    ...                                                   # BEGIN; own rows; tx.decision_sql() as the last; COMMIT
    tx.finish()                                           # reads the log, then Commit or Abort; whatever happened

    with coordinator.transactions([branches, ...]) as batch:     # many, one local commit: all decisions or none
        ...                                                      # batch.accepted, batch.refused, batch.connection

What goes wrong is raised and says what is true. Refused, Unavailable, Fenced: not committed; a repeat may help with the
latter two. OutcomeUnknown: perhaps committed, so never answer "failed"; `tx.finish()` finds out. LocalTransactionOpen:
nothing was sent. After the commit nothing raises; `tx.delivered` says whether everybody has acknowledged. Options:
`transaction_id` (a UUIDv7, for a call that may be repeated), `ttl_s`, `confirm="background"`.

A participant stages, publishes and discards what it is asked to. It writes four functions (`Resource`) and wires:

    from tandem.participant import Participant, ParticipantMetrics, ParticipantServicer, Resolver, Sweeper
    from tandem.participant import RESERVED, check_names

    check_names(engine, name="profiles", coordinators=targets)                      # name → gRPC target

    participant = Participant(engine, name="profiles", resource=MyResource(), coordinators=targets, times=Times(),
                              metrics=ParticipantMetrics(registry))
    resolver = Resolver(participant, targets)
    ParticipantServicer(participant, resolver).add_to(server)                       # a Server(…, reserved=RESERVED)
    Sweeper(engine, resolver, metrics).run_once()                                   # on a schedule, any number of them

Each half has its names in a package of its own, since both know a `Refused`. Both make their tables by
`MIGRATIONS.upgrade(engine)`. `CoordinatorServicer` and `Recovery` (tandem.coordinator) answer for the decisions and
push them, in a process of their own or in the initiator's. The protocol, its promises and limits: docs/protocol.md.
"""
