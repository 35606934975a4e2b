"""The journal of a primary with followers: an LSN counts as durable when it may be spoken of (`agreement`).

Everybody who waits for an LSN waits here. With a witness they are answered only while this process has the right
to answer (`may_speak`, looked at after the flush and before the answers, by CLOCK_BOOTTIME): a process that was
frozen past its lease wakes, finds the right gone, and refuses instead. `resign` ends it: whoever waits is told
`not_primary` and nothing is taken any more.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from engine.errors import Refused, StorageFailed
from engine.records import Record
from server.replication.agreement import Agreement
from snapshots.journal import Journal, JournalStats, SnapshotInfo
from snapshots.shipping import Piece


class ReplicatedJournal:
    """Gives a MemoryBackend what it needs of a log. `on_pieces` is called with what became durable here.

    `now_ns` is CLOCK_BOOTTIME; `may_speak()` says whether answers may leave; `on_moved` is called whenever what
    may be spoken of has moved.
    """

    def __init__(
        self,
        journal: Journal,
        agreement: Agreement,
        now_ns: Callable[[], int],
        may_speak: Callable[[], bool],
        no_right: Callable[[], Refused],
    ) -> None:
        self._journal = journal
        self._agreement = agreement
        self._now_ns = now_ns
        self._may_speak = may_speak
        self._no_right = no_right
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._resigned: Refused | None = None
        self._taking_none: Refused | None = None
        self._retired = False
        self._spoken_lsn = journal.durable_lsn
        self.on_pieces: Callable[[Sequence[Piece]], None] = lambda pieces: None
        self.on_moved: Callable[[], None] = lambda: None
        agreement.flushed_lsn = agreement.committed_lsn = journal.durable_lsn
        journal.on_durable = self._on_durable

    @property
    def epoch(self) -> int:
        """The epoch every record is written under."""
        return self._journal.epoch

    @property
    def last_lsn(self) -> int:
        """The newest record appended."""
        return self._journal.last_lsn

    @property
    def durable_lsn(self) -> int:
        """The newest record that may be spoken of."""
        return self._spoken_lsn

    @property
    def lost(self) -> str | None:
        """What history may be missing before this epoch."""
        return self._journal.lost

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from."""
        return self._journal.snapshot_parts()

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield the records after that snapshot."""
        return self._journal.replay()

    async def start(self) -> None:
        """Begin to commit."""
        await self._journal.start()
        self._journal.failed.add_done_callback(self._on_failure)

    def refusal(self, *, essential: bool) -> Refused | None:
        """Return why nothing may be appended now, or None."""
        return self._taking_none or self.right_refusal() or self._journal.refusal(essential=essential)

    def right_refusal(self) -> Refused | None:
        """Return why this process may not speak for the line now, None while it may."""
        if self._resigned is not None:
            return self._resigned
        return None if self._may_speak() else self._no_right()

    def append(self, records: Sequence[Record]) -> int:
        """Take records and return the LSN of the last."""
        return self._journal.append(records)

    def when_durable(self, lsn: int) -> "asyncio.Future[None] | None":
        """Return None when `lsn` may be spoken of, else a future of the caller's own; it may come to raise Refused."""
        if lsn <= self._spoken_lsn:
            return None
        if self._retired:
            return self._journal.when_durable(lsn)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._resigned is not None:
            future.set_exception(self._resigned.again())
        else:
            self._waiters.append((lsn, future))
        return future

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterable[object]) -> SnapshotInfo:
        """Write a snapshot of what may be spoken of."""
        return await self._journal.snapshot(lsn, at_ms, parts)

    async def read_records(self, from_lsn: int) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield records that may be spoken of."""
        async for batch in self._journal.read_records(from_lsn, self._spoken_lsn):
            yield batch

    def stats(self) -> JournalStats:
        """Return the figures of the log."""
        return self._journal.stats()

    async def close(self) -> None:
        """Commit what was appended and let the folder go."""
        await self._journal.close()
        self._refuse_all(self._resigned or Refused("backend_unavailable", "the log is closed", retry_after_s=5))

    # ---- what moves it --------------------------------------------------------------------------------

    def speak(self) -> None:
        """Answer everybody whose LSN may be spoken of by now; call it after anything that moves the agreement."""
        lsn = self._agreement.committed_lsn
        if lsn <= self._spoken_lsn or self._resigned is not None or not self._may_speak():
            return
        self._spoken_lsn = lsn
        waiters = self._waiters
        while waiters and waiters[0][0] <= lsn:
            _, future = waiters.popleft()
            if not future.done():
                future.set_result(None)
        self.on_moved()

    def refuse_waiting(self) -> None:
        """Refuse those who wait, because the right to answer is gone; whether it was done is not known to them."""
        self._refuse_all(self._no_right())

    def stop_taking(self, why: Refused) -> None:
        """Take nothing new; what was taken is still answered."""
        self._taking_none = why

    def go_on_taking(self) -> None:
        """Take what comes again."""
        self._taking_none = None

    def retire(self) -> None:
        """Wait for this disk only from now on: nobody is answered any more, there is a last snapshot to write."""
        self._retired = True

    def resign(self, why: Refused) -> None:
        """Take nothing more and answer nobody any more."""
        if self._resigned is None:
            self._resigned = why
            self._refuse_all(why)

    def _refuse_all(self, why: Refused) -> None:
        waiters, self._waiters = self._waiters, deque()
        for _, future in waiters:
            if not future.done():
                future.set_exception(why.again())

    def _on_durable(self, pieces: Sequence[Piece]) -> None:
        self._agreement.flushed(self._journal.durable_lsn, self._now_ns())
        self.on_pieces(pieces)
        self.speak()

    def _on_failure(self, failed: "asyncio.Future[StorageFailed | None]") -> None:
        if not failed.cancelled() and failed.result() is not None:
            self.resign(Refused("backend_unavailable", f"it is not known to be durable: {failed.result()}"))
