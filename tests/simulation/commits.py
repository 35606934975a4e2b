"""The commit thread of a journal without a thread: each job takes a seeded time and has its effect at the end of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from engine.records import Record
from snapshots.commit import CommitThread
from tests.simulation.virtual_loop import VirtualLoop, Work


class VirtualCommits(CommitThread):
    """Does the jobs of a journal in order on the virtual loop, and can be interrupted by a crash in any of them."""

    _is_busy = False

    def _begin(self) -> None:
        self._is_over = False

    def _put(self, job: Sequence[Record] | None) -> None:
        super()._put(job)
        self._go_on()

    def _go_on(self) -> None:
        if self._is_busy or self._jobs.empty():
            return
        self._is_busy = True
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        done: asyncio.Future[Any] = loop.create_future()
        done.add_done_callback(self._on_done)
        loop.do_work(Work(done, self.perform, (self._jobs.get(),)), at_its_end=True)

    def _on_done(self, done: "asyncio.Future[bool]") -> None:
        self._is_busy = False
        if done.result():
            self._go_on()

    def join(self) -> None:
        """There is nothing to wait for."""
