"""The small worlds in which everything is tried."""

from __future__ import annotations

from lab.model.world import Driver, Scenario

SCENARIOS = {
    "two-participants": Scenario(
        "one initiator, two participants, a reader", [Driver(0, {0: "A", 1: "A"})], reads=[(0, 1)]
    ),
    "three-participants": Scenario("one initiator, three participants", [Driver(0, {0: "A", 1: "A", 2: "A"})]),
    "same-id": Scenario(
        "two drivers of one id, the same content, a reader",
        [Driver(0, {0: "A", 1: "A"}, own_id=False)] * 2,
        reads=[(0, 1)],
    ),
    "other-participants": Scenario(
        "two drivers of one id, other participants",
        [Driver(0, {0: "A"}, own_id=False), Driver(0, {1: "B"}, own_id=False)],
    ),
    "other-content": Scenario(
        "two drivers of one id, other content",
        [Driver(0, {0: "A", 1: "A"}, own_id=False), Driver(0, {0: "B"}, own_id=False)],
    ),
    "one-entity": Scenario(
        "two transactions that want one entity, a reader",
        [Driver(0, {0: "A"}), Driver(1, {0: "B"})],
        same_entity=True,
        reads=[(0, 0)],
    ),
    "purge": Scenario(
        "one initiator, two participants, purge and late messages", [Driver(0, {0: "A", 1: "A"})], ages=True
    ),
    "purge-same-id": Scenario(
        "two drivers of one id, purge and late messages",
        [Driver(0, {0: "A", 1: "A"}, own_id=False)] * 2,
        ages=True,
    ),
    "three-drivers": Scenario(
        "three drivers of one id, one with other content",
        [
            Driver(0, {0: "A", 1: "A"}, own_id=False),
            Driver(0, {0: "A", 1: "A"}, own_id=False),
            Driver(0, {0: "B", 1: "A"}, own_id=False),
        ],
    ),
    "entities-everywhere": Scenario(
        "two transactions that want the same two entities, a reader",
        [Driver(0, {0: "A", 1: "A"}), Driver(1, {0: "B", 1: "B"})],
        same_entity=True,
        reads=[(0, 1)],
    ),
    "three-participants-same-id": Scenario(
        "two drivers of one id, three participants, one of them with other content",
        [Driver(0, {0: "A", 1: "A", 2: "A"}, own_id=False), Driver(0, {0: "A", 1: "B"}, own_id=False)],
        reads=[(0, 0)],
    ),
    "purge-other-content": Scenario(
        "two drivers of one id, other content, a reader, purge and late messages",
        [Driver(0, {0: "A", 1: "A"}, own_id=False), Driver(0, {0: "B"}, own_id=False)],
        reads=[(0, 0)],
        ages=True,
    ),
    "purge-one-entity": Scenario(
        "two transactions that want one entity, a reader, purge and late messages",
        [Driver(0, {0: "A"}), Driver(1, {0: "B"})],
        same_entity=True,
        reads=[(0, 0)],
        ages=True,
    ),
    "three-participants-purge": Scenario(
        "one initiator, three participants, purge and late messages",
        [Driver(0, {0: "A", 1: "A", 2: "A"})],
        ages=True,
    ),
    "two-readers": Scenario(
        "two drivers of one id, two readers of the same",
        [Driver(0, {0: "A", 1: "A"}, own_id=False)] * 2,
        reads=[(0, 0), (0, 0)],
    ),
    "purge-two-readers": Scenario(
        "one initiator, two participants, a reader at each, purge and late messages",
        [Driver(0, {0: "A", 1: "A"})],
        reads=[(0, 0), (0, 1)],
        ages=True,
    ),
    "two-coordinators": Scenario(
        "coordinators of two names with one id, a reader of what each makes",
        [Driver(0, {0: "A"}), Driver(1, {0: "B"})],
        reads=[(0, 0), (1, 0)],
    ),
}
