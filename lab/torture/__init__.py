"""Many clients, a nemesis that kills, stops and disconnects, and a checker that believes nobody.

`house.py` runs the processes; `clients.py` calls them with what is in `content.py` and writes the history
(`history.py`). `plan.py` says what breaks when, `nemesis.py` breaks it, `faults.py` is what is remembered of it.
`state.py` reads both databases, `invariants.py` and `versions.py` judge the history by them (`verdict.py`), and
`evidence.py` finds what belongs to a breach. `doubt.py` counts the time in doubt, `report.py` prints.
`naive_identity.py` and `naive_profiles.py` are the control groups.
"""
