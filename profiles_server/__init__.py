"""The profiles process: the one true home of real-world facts about persons and businesses.

`profiles.py` is the plug that makes it a participant; `servicer.py` answers reads and updates; `app.py` wires.
"""
