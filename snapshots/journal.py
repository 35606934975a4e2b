"""The journal: the one door to what is remembered, the log and the snapshots of one data folder.

Opening is synchronous: lock, survey, decide, repair, and a new segment under a new epoch (`recovery`). After
`start` everything here runs on the event loop and never waits: `append` extends a list; a batch goes to the
commit thread when the one before it is durable; its completion wakes the loop once, which hands over the next
batch first and answers the waiters of this one then. So the disk is never idle while there is work, and one
flush serves everybody who came during the one before.

Failing is final. After the first failed write, flush, rename or close nothing more is called durable, all
waiters are refused, and `failed` resolves so that the process can end; nothing is tried a second time, because
a second flush that succeeds says nothing about what the first one lost.

Full disk. Segments are reserved one ahead. While the next one cannot be had, the current one is filled up to
three quarters by everybody and beyond that only by essential appends (leave, release, redeem, complete); at
its end those are refused too. Nothing ends, and a retry about once a second brings joins back.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from engine.errors import Damaged, Refused, StorageFailed
from engine.records import Record
from snapshots.commit import Commit, Failure, Message, Space, Stopped
from snapshots.options import JournalOptions, JournalStats, SnapshotInfo
from snapshots.reading import read_batches, records_of
from snapshots.recovery import Found, Recovered, recover
from snapshots.retention import prune
from snapshots.scan import Cursor
from snapshots.segments import LogPosition, Piece, SegmentWriter
from snapshots.snapshot import SnapshotHeader, read_parts, snapshot_name, write_snapshot
from snapshots.storage import Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import FORMAT_VERSION, RESTARTS_PER_TERM

__all__ = ["Found", "Journal", "JournalOptions", "JournalStats", "SnapshotInfo"]

POSITIONS_KEPT = 1024
SMALLEST_RECORD_BYTES = 32
FIRST_RECORD_BYTES = 128


@dataclass(slots=True)
class _Counters:
    """What `stats` tells and only grows or changes here."""

    segments: int
    snapshots: int
    commits: int = 0
    committed_records: int = 0
    commit_seconds_last: float = 0.0
    commit_seconds_sum: float = 0.0
    written_bytes: int = 0
    snapshot_last: SnapshotInfo | None = None
    snapshot_failures: int = 0
    storage_full: bool = False


class Journal:
    """The log and the snapshots of one data folder; one process at a time has it open.

    `last_lsn` is the newest record appended, `durable_lsn` the newest known to be on disk. `epoch` is written
    in every frame from now on. `on_durable`, where it is set, is called with the pieces of each commit once they
    are durable and before anybody who waits for them is answered. `lost` says what history may be missing before
    this epoch, and is None where nothing is. `failed` exists from `start` on and resolves
    with the failure, or with None when the journal was closed.
    """

    failed: "asyncio.Future[StorageFailed | None]"

    def __init__(
        self, storage: Storage, options: JournalOptions, recovered: Recovered, writer: SegmentWriter, lost: str | None
    ) -> None:
        """Use `Journal.open`, or `Journal.resume` where the folder is locked and in order."""
        self.storage = storage
        self._options = options
        self._recovered = recovered
        self._writer = writer
        self._thread = options.commit_thread(writer, self._tell, options.reserve_retry_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: list[Record] = []
        self._queue_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._flight_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._flight_lsn = 0
        self._busy = False
        self._broken: StorageFailed | None = None
        self._closing = False
        self._stopped: asyncio.Future[None] | None = None
        self._idle_armed = False
        self._boundary_lsn = 0
        self._positions: deque[LogPosition] = deque([writer.position], POSITIONS_KEPT)
        self._snapshot_lock = asyncio.Lock()
        self._mean_bytes = float(FIRST_RECORD_BYTES)
        self._retry_armed = False
        self._counters = _Counters(len(recovered.segments) + 1, len(snapshot_names(storage)))
        self.lost = lost
        self.on_durable: Callable[[Sequence[Piece]], None] | None = None
        self.found: Found = recovered.found
        self.epoch = recovered.epoch
        self.log_id = recovered.log_id
        self.snapshot_lsn = recovered.found.snapshot_lsn
        self.last_lsn = self.durable_lsn = writer.position.lsn
        self._stated_lsn = self.durable_lsn
        self._limits = [0, 0]
        self._queue_limit = 0

    @classmethod
    def open(cls, storage: Storage, options: JournalOptions) -> "Journal":
        """Lock the folder, recover it and begin a new segment under a new epoch, which is then durable.

        Raises Locked; Damaged, having changed nothing, where acknowledged records may be missing; StorageFailed.
        """
        storage.lock()
        try:
            journal = cls.resume(storage, options, recover(storage, options.accept_loss))
            journal.lost = journal._missing()
            return journal
        except BaseException:
            storage.unlock()
            raise

    @classmethod
    def resume(
        cls, storage: Storage, options: JournalOptions, recovered: Recovered, lost: str | None = None
    ) -> "Journal":
        """Begin a new segment under a new epoch, durably, in a folder that is locked and in order.

        `lost` says what history may be missing before that epoch.
        """
        epoch = max(recovered.epoch, RESTARTS_PER_TERM - 1, options.least_epoch - 1) + 1
        end = recovered.end
        writer = SegmentWriter(storage, options.segment_bytes, recovered.log_id, epoch, end, end.lsn)
        writer.cut_first()
        return cls(storage, options, replace(recovered, epoch=epoch), writer, lost)

    @property
    def position(self) -> LogPosition:
        """The place behind what is durable."""
        return self._positions[-1]

    def newest_snapshot(self) -> str | None:
        """Return the name of the newest snapshot in the folder."""
        return next(iter(snapshot_names(self.storage)), None)

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from, in order; nothing where there is none."""
        return iter(()) if self.found.snapshot is None else read_parts(self.storage, self.found.snapshot)

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield (LSN, record) for everything after the snapshot; holds one frame at a time. Raises Damaged."""
        cursor = Cursor(self._recovered.start)
        for first_lsn, records in records_of(self.storage, self._recovered.segments, cursor, self.snapshot_lsn + 1):
            yield from enumerate(records, first_lsn)
        if cursor.position.lsn != self.found.last_lsn:
            place = self.storage.place
            raise Damaged(f"{place} changed since it was verified: the log ends at LSN {cursor.position.lsn}")

    async def start(self) -> None:
        """Reserve the next segment and begin to commit; raises StorageFailed."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        try:
            space = await asyncio.to_thread(self._thread.start)
        except StorageFailed as error:
            self._on_failure(error)
            raise
        self._set_limits(space)

    def refusal(self, *, essential: bool) -> Refused | None:
        """Return why nothing may be appended now, or None; O(1), about 100 ns when nothing is wrong."""
        if self.last_lsn - self.durable_lsn < self._limits[essential]:
            return None
        return self._explain_refusal()

    def append(self, records: Sequence[Record]) -> int:
        """Take all records, in order, and return the LSN of the last; they are durable when `when_durable` says so.

        Ask `refusal` first. Never blocks. Raises StorageFailed once the journal has failed or is closed.
        """
        if self._broken is not None:
            raise self._broken
        self._queue.extend(records)
        self.last_lsn += len(records)
        if not self._busy:
            self._busy = True
            assert self._loop is not None, "start the journal before appending"
            self._loop.call_soon(self._hand_over)
        return self.last_lsn

    def when_durable(self, lsn: int) -> "asyncio.Future[None] | None":
        """Return None when `lsn` is durable, else a future of the caller's own; a failure makes it raise Refused."""
        if lsn <= self.durable_lsn:
            return None
        assert self._loop is not None and lsn <= self.last_lsn
        future: asyncio.Future[None] = self._loop.create_future()
        if self._broken is not None:
            future.set_exception(_refused_by(self._broken))
        elif lsn <= self._flight_lsn:
            self._flight_waiters.append((lsn, future))
        else:
            self._queue_waiters.append((lsn, future))
        return future

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterable[object]) -> SnapshotInfo:
        """Write the state after `lsn`, and prune what it makes unnecessary; returns once it is verified and named.

        `parts` are msgpack-able values of at most ~5,000 rows or ~256 KiB, consumed lazily in a worker thread.
        A failure raises and is not fatal: the log goes on. One snapshot is written at a time.
        """
        self._boundary_lsn = lsn
        if (durable := self.when_durable(lsn)) is not None:
            await durable
        async with self._snapshot_lock:
            began = perf_counter()
            header = SnapshotHeader(FORMAT_VERSION, lsn, self.epoch, at_ms, self.log_id, self._position_at(lsn))
            try:
                size_bytes = await write_snapshot(self.storage, header, parts)
                segments, snapshots = await asyncio.to_thread(prune, self.storage, self._options.keep_snapshots)
            except BaseException:
                self._counters.snapshot_failures += 1
                raise
            info = SnapshotInfo(lsn, size_bytes, perf_counter() - began, snapshot_name(lsn))
            counters = self._counters
            counters.segments, counters.snapshots, counters.snapshot_last = segments, snapshots, info
            return info

    async def read_records(self, from_lsn: int, to_lsn: int | None = None) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield durable records in batches, read off the loop; raises Refused("gone") for what was pruned."""
        last_lsn = self.durable_lsn if to_lsn is None else min(to_lsn, self.durable_lsn)
        batches = read_batches(self.storage, segment_names(self.storage), from_lsn, last_lsn)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch

    def stats(self) -> JournalStats:
        """Return the figures of this moment."""
        queued, counters = self.last_lsn - self.durable_lsn, self._counters
        return JournalStats(
            last_lsn=self.last_lsn,
            durable_lsn=self.durable_lsn,
            epoch=self.epoch,
            queued_records=queued,
            queued_bytes=int(queued * self._mean_bytes),
            commits=counters.commits,
            committed_records=counters.committed_records,
            commit_seconds_last=counters.commit_seconds_last,
            commit_seconds_sum=counters.commit_seconds_sum,
            written_bytes=counters.written_bytes,
            segments=counters.segments,
            snapshots=counters.snapshots,
            snapshot_last=counters.snapshot_last,
            snapshot_failures=counters.snapshot_failures,
            storage_full=counters.storage_full,
            failed=self._broken is not None,
        )

    async def close(self) -> None:
        """Commit what was appended, state that it is durable, seal the log and let the folder go."""
        if self._closing:
            return
        self._closing = True
        self._limits = [0, 0]
        try:
            if self._loop is None:
                self._writer.close()
            else:
                await self._drain()
        finally:
            self.storage.unlock()

    async def _drain(self) -> None:
        assert self._loop is not None
        self._stopped = self._loop.create_future()
        if self._broken is None and not self._busy:
            self._busy = True
            self._finish()
        if self._broken is not None:
            return
        if self._counters.storage_full:
            self._thread.stop()
        await self._stopped

    def _missing(self) -> str | None:
        """Say what history may be missing before this epoch, going by what was found in the folder."""
        if self.found.accepted_loss is not None:
            return self.found.accepted_loss
        before, term = self.found.previous_epoch // RESTARTS_PER_TERM, self.epoch // RESTARTS_PER_TERM
        return f"term {term} begins after LSN {self.found.last_lsn} of term {before}" if 0 < before < term else None

    def _tell(self, message: Message) -> None:
        """Bring a message of the commit thread to the loop."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._on_message, message)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more, and nothing was claimed

    def _on_message(self, message: Message) -> None:
        match message:
            case Commit():
                self._on_commit(message)
            case Space():
                self._set_limits(message)
            case Failure():
                self._on_failure(message.error)
            case Stopped():
                self._on_failure(None)

    def _hand_over(self) -> None:
        """Give the queue to the commit thread, up to the boundary of a snapshot if one lies in it."""
        batch, self._queue = self._queue, []
        waiters, self._queue_waiters = self._queue_waiters, []
        self._flight_lsn = self.last_lsn
        if self.durable_lsn < self._boundary_lsn < self.last_lsn:
            count = self._boundary_lsn - self.durable_lsn
            batch, self._queue = batch[:count], batch[count:]
            self._flight_lsn = self._boundary_lsn
            self._queue_waiters = [waiter for waiter in waiters if waiter[0] > self._flight_lsn]
            waiters = [waiter for waiter in waiters if waiter[0] <= self._flight_lsn]
        self._flight_waiters = waiters
        self._thread.commit(batch)

    def _on_commit(self, commit: Commit) -> None:
        counters = self._counters
        counters.commits += 1
        counters.committed_records += commit.count
        counters.commit_seconds_last = commit.seconds
        counters.commit_seconds_sum += commit.seconds
        counters.written_bytes += commit.size_bytes
        end = commit.pieces[-1].end
        counters.segments += end.sequence - self._positions[-1].sequence
        self._positions.extend(piece.end for piece in commit.pieces)
        self.durable_lsn = end.lsn
        if commit.count:
            self._mean_bytes += (commit.size_bytes / commit.count - self._mean_bytes) * 0.1
        self._set_limits(commit.space)
        waiters, self._flight_waiters = self._flight_waiters, []
        if self._queue:
            self._hand_over()
        elif self._closing:
            self._finish()
        else:
            self._busy = False
            self._arm_idle()
        if self.on_durable is not None:
            self.on_durable(commit.pieces)
        for _, future in waiters:
            if not future.done():
                future.set_result(None)

    def _finish(self) -> None:
        """Bring the closing one step on: state what is durable, then stop the thread."""
        if self._stated_lsn < self.durable_lsn:
            self._state_durable()
        else:
            self._thread.stop()

    def _state_durable(self) -> None:
        """Commit an empty frame, which says that everything before it is on disk."""
        self._stated_lsn = self.durable_lsn
        self._thread.commit(())

    def _arm_idle(self) -> None:
        if not self._idle_armed and self._stated_lsn < self.durable_lsn:
            self._idle_armed = True
            assert self._loop is not None
            self._loop.call_later(self._options.idle_frame_ms / 1000, self._on_idle, self.durable_lsn)

    def _on_idle(self, lsn: int) -> None:
        """Write the empty frame if nothing was appended since the timer was set; otherwise set it again."""
        self._idle_armed = False
        if self._busy or self._closing or self._broken is not None:
            return
        if self.last_lsn == lsn:
            self._busy = True
            self._state_durable()
        else:
            self._arm_idle()

    def _on_failure(self, error: StorageFailed | None) -> None:
        """End everything: after a failure, or after an orderly stop (`error` is None)."""
        self._limits = [0, 0]
        self._broken = error or StorageFailed("the journal is closed")
        for _, future in self._flight_waiters + self._queue_waiters:
            if not future.done():
                future.set_exception(_refused_by(self._broken))
        self._flight_waiters, self._queue_waiters = [], []
        if not self.failed.done():
            self.failed.set_result(error)
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)

    def _position_at(self, lsn: int) -> LogPosition:
        """Return the last known place between two frames behind which every record after `lsn` stands."""
        return next(p for p in reversed((self._positions[0], *self._positions)) if p.lsn <= lsn)

    def _set_limits(self, space: Space) -> None:
        """Set how many records may wait, of any kind and of the essential kinds, given the room on disk."""
        mean_bytes = max(self._mean_bytes, SMALLEST_RECORD_BYTES)
        queue_limit = min(self._options.queue_max_records, int(self._options.queue_max_bytes / mean_bytes))
        anyone = essential = self._queue_limit = queue_limit
        if space.disk_full:
            kept_bytes = self._options.segment_bytes // 4
            anyone = min(anyone, int((space.free_bytes - kept_bytes) / mean_bytes))
            essential = min(essential, int((space.free_bytes - kept_bytes // 16) / mean_bytes))
        if self._broken is None and not self._closing:
            self._limits = [anyone, essential]
        self._counters.storage_full = space.disk_full
        if space.disk_full and not self._retry_armed and self._loop is not None:
            self._retry_armed = True
            self._loop.call_later(self._options.reserve_retry_s, self._retry_reserve)

    def _retry_reserve(self) -> None:
        self._retry_armed = False
        if self._broken is None and not self._closing:
            self._thread.reserve()

    def _explain_refusal(self) -> Refused:
        if self._broken is not None or self._closing:
            return Refused("backend_unavailable", "the log is not open for writing", retry_after_s=5)
        if self.last_lsn - self.durable_lsn < self._queue_limit:
            return Refused("storage_full", "there is no space left on the disk of the log", retry_after_s=5)
        return Refused("overloaded", "the log cannot keep up with what is to be written", retry_after_s=1)


def _refused_by(error: StorageFailed) -> Refused:
    return Refused("backend_unavailable", f"it is not known to be durable: {error}", retry_after_s=5)
