"""The operator's console: pages that the coordinator process serves where COORDINATOR_CONSOLE_LISTEN is set.

`facts.py` gathers what the overview and the lists show, `pages.py` serves it, `security.py` guards it, `serving.py`
runs it in a thread. One transaction's story is the library's (`tandem.coordinator.story`). Needs the extra `console`.
"""
