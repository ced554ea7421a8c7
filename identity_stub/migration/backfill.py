"""The backfill: profiles for all accounts from before there were profiles.

A batch is one transaction of the product: its profiles and the marks on their accounts come into being together, or not
at all. The marks are all that there is to remember, so a backfill can be killed, run again, run twice, and run by many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

from identity_stub.migration import backfill_accounts as accounts
from identity_stub.migration.backfill_accounts import Kind
from identity_stub.migration.backfill_batch import Batch
from identity_stub.migration.backfill_report import Ledger, Options, Report
from identity_stub.migration.conflicts import Existing
from identity_stub.migration.listed import Numbers
from identity_stub.signup import TROUBLE
from tandem.coordinator.driver import Coordinator
from tandem.runtime.database import explained
from tandem.runtime.failpoints import failpoint

MAX_THREADS = 32


class Backfill:
    """One run over an identity's accounts.

    coordinator: the initiator's. participant: its name for profiles. existing: profiles, for conflicts. on_progress:
    told of the report now and again, one call at a time.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        existing: Existing,
        options: Options,
        *,
        participant: str = "profiles",
        on_progress: Callable[[Report], object] = lambda _: None,
    ) -> None:
        self._coordinator = coordinator
        self._existing = existing
        self._options = options
        self._participant = participant
        self._ledger = Ledger(on_progress)
        self._numbers = Numbers()
        self._mistakes: list[BaseException] = []

    def run(self) -> Report:
        """To the end, or until it is stopped, which the report says. Raises what is a mistake of ours."""
        options, report, began = self._options, self._ledger.report, time.monotonic()
        # As many wait as run, so that no thread is idle; what is read ahead has a limit, too.
        room = threading.BoundedSemaphore(2 * options.threads)
        threads = ThreadPoolExecutor(options.threads, thread_name_prefix="backfill")

        def done(future: Future[None]) -> None:
            room.release()
            if not future.cancelled() and (mistake := future.exception()) is not None:
                self._mistakes.append(mistake)
                self._ledger.stopping.set()

        try:
            engine = self._coordinator.engine
            total = sum(accounts.count(engine, kind, options.status, options.shard) for kind in options.kinds)
            self._ledger.change(lambda report: setattr(report, "total", total))
            for kind, ids in self._batches():
                room.acquire()
                if self._ledger.stopping.is_set():
                    room.release()
                    break
                threads.submit(self._one, kind, ids).add_done_callback(done)
        except TROUBLE as error:
            self._ledger.stop(explained(error))
        except BaseException:
            self._ledger.stopping.set()
            raise
        finally:
            threads.shutdown()  # batches on their way end; those that wait see that they are stopped
            self._numbers.close()
            report.seconds = time.monotonic() - began
        if self._mistakes:
            raise self._mistakes[0]
        return report

    def _batches(self) -> Iterator[tuple[Kind, list[UUID]]]:
        """All that wait, no quicker than the rate allows."""
        options, due = self._options, time.monotonic()
        for kind in options.kinds:
            for page in accounts.pages(self._coordinator.engine, kind, options.status, options.shard):
                for first in range(0, len(page), options.batch):
                    ids = page[first : first + options.batch]
                    if options.rate is not None:
                        self._ledger.stopping.wait(max(0.0, due - time.monotonic()))
                        due = max(due, time.monotonic()) + len(ids) / options.rate
                    yield kind, ids

    def _one(self, kind: Kind, ids: list[UUID]) -> None:
        failpoint("backfill.before_batch")
        Batch(
            kind,
            ids,
            coordinator=self._coordinator,
            participant=self._participant,
            existing=self._existing,
            options=self._options,
            ledger=self._ledger,
            numbers=self._numbers,
        ).run()
        failpoint("backfill.after_batch")
