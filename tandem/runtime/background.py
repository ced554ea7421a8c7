"""Work that nobody waits for: a bounded queue and one thread, which takes what has gathered as a batch.

For what may get lost because somebody else does it again. Never raises.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tandem.runtime.telemetry import frames, logger

log = logger("tandem.background")

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands what is `put` to `work`, up to `batch` at a time; the thread comes with the first item.

    name: the thread's. limit: items that wait. dropped: told how many could not wait, the queue being full, all this
    being closed, or no thread to be had. every_s: the least time from one batch to the next.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], object],
        *,
        limit: int,
        batch: int,
        dropped: Callable[[int], object],
        every_s: float = 0.0,
    ) -> None:
        self._name = name
        self._work = work
        self._batch = batch
        self._dropped = dropped
        self._every_s = every_s
        self._waiting: queue.Queue[Item | None] = queue.Queue(limit)  # None: the last
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def put(self, items: Sequence[Item]) -> None:
        """To be worked on soon."""
        if self._closed or not self._started():
            self._dropped(len(items))
            return
        for item in items:
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                self._dropped(1)

    def close(self, timeout_s: float = 5.0) -> None:
        """Works on what waits, for at most so long."""
        self._closed = True
        if self._thread is None:
            return
        until = time.monotonic() + timeout_s
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, until - time.monotonic()))

    def _started(self) -> bool:
        if self._thread is not None:
            return True
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    log.warning("no thread to be had", work=self._name, exception=frames(error))
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        last = False
        while not last:
            taken = [self._waiting.get()]
            while len(taken) < self._batch and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            last = None in taken
            items = [item for item in taken if item is not None]
            try:
                if items:
                    self._work(items)
            except Exception as error:  # whatever it is: somebody else does it again
                log.warning("work in the background failed", work=self._name, exception=frames(error))
            if not last:
                time.sleep(self._every_s)
