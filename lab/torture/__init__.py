"""Many clients, a nemesis that kills, stops and disconnects, and a checker that believes nobody.

`house.py` runs the processes; `clients.py` calls them with what is in `content.py` and writes the history
(`history.py`). `plan.py` says what breaks when, `nemesis.py` breaks it, `faults.py` is what is remembered of it.
`state.py` reads both databases, and `messages.py` what a broker holds. `invariants.py` and `versions.py` judge the
history by them (`verdict.py`), `eventual.py` that of designs which bring a profile later, and `evidence.py` finds what
belongs to a breach. `designs.py` says how each design is run, what of it is broken, and how it is judged. `doubt.py`
counts the time in doubt, `report.py` prints. `naive_identity.py` and `naive_profiles.py` are the control groups.
"""
