"""Many clients, a nemesis that kills, stops and disconnects, and a checker that believes nobody.

`house.py` runs the processes, `clients.py` calls them and writes the history, `nemesis.py` breaks things,
`invariants.py` judges the history by SQL, `naive_identity.py` and `naive_profiles.py` are the control groups.
"""
