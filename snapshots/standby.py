"""A standby's log: the follower's copy of a primary's log, byte for byte, and its own snapshots.

Segments have the same names, headers and frames as the primary's, so a position means the same on both machines,
and a copy of either folder is the beginning of another standby. Opening goes on in the last segment, whose reserved
zeros recovery has cut off; their space is reserved again with the first frame.

`append` verifies everything it is given before it writes anything. What came together is written together and
flushed once, in a thread; only then does `position` move, and only what is before `position` is ever acknowledged.

What a crash may leave. A batch of frames may reach the disk in any part, so that a whole frame may stand behind a
torn one, which in a primary's log proves damage. Therefore it is noted (`notes`) up to where the segment is known
to be on disk: the note is written before the first frame of a segment is, never runs ahead of a flush, and follows
within `idle_frame_ms`, as a primary's empty frame does. A contradiction before that place is damage and refused.
One behind it is a batch that was never acknowledged, or, for that short time, may be damage of one that was; it is
put aside and cut off, and comes again from the primary. Recovery knows the rule, whoever opens the folder.

A folder that takes up a snapshot is incomplete until its log has come to the snapshot's LSN: a restart before that
begins again from nothing. Nothing of it was acknowledged as far as the snapshot goes.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

from engine.errors import Damaged, Refused, StorageFailed
from engine.records import Record
from snapshots.cutting import RECEIVING, cut_behind, empty, finish_interrupted, fits
from snapshots.journal import Journal
from snapshots.mirroring import GaveUpWaiting, MirrorWriter, VerifiedPiece
from snapshots.notes import mark_complete, mark_incomplete
from snapshots.options import JournalOptions, JournalStats, SnapshotInfo
from snapshots.reading import read_batches, records_of, start_of
from snapshots.recovery import Found, Recovered, recover
from snapshots.retention import prune
from snapshots.scan import Cursor, read_segment_header
from snapshots.segments import LogPosition
from snapshots.shipping import ChainCheck, find_boundary
from snapshots.snapshot import SnapshotHeader, read_parts, receive_snapshot, snapshot_name, write_snapshot
from snapshots.storage import Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import FORMAT_VERSION, FrameHeader, SegmentHeader, first_chain, sequence_of

POSITIONS_KEPT = 1024

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class CutReport:
    """What was put aside: how many records, from where to where, into which files; `sentence` says it for people."""

    records: int
    first_lsn: int
    last_lsn: int
    files: tuple[str, ...]
    sentence: str


@dataclass(slots=True)
class _Counters:
    """What `stats` tells and only grows here."""

    batches: int = 0
    records: int = 0
    seconds_last: float = 0.0
    seconds_sum: float = 0.0
    snapshot_last: SnapshotInfo | None = None
    snapshot_failures: int = 0


class StandbyLog:
    """The copy of a primary's log in one data folder; one process at a time has it open.

    `found` is what recovery found and did; it also names the snapshot to start from. `log_id` is empty until the
    folder holds a segment or a snapshot.
    """

    found: Found
    log_id: bytes

    def __init__(self, storage: Storage, options: JournalOptions, recovered: Recovered) -> None:
        """Use `StandbyLog.open`."""
        self._storage = storage
        self._options = options
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="stanchion-standby")
        self._folder_lock = threading.Lock()
        self._snapshot_lock = asyncio.Lock()
        self._history = 0
        self._counters = _Counters()
        self._broken: StorageFailed | None = None
        self._busy = False
        self._closed = False
        self._note_armed = False
        self._begin(recovered)

    def _begin(self, recovered: Recovered) -> None:
        """Go on behind what recovery has brought in order."""
        end = recovered.end
        self._recovered = recovered
        self._filling: SnapshotHeader | None = None
        self._check = ChainCheck.anywhere()
        self._positions: deque[tuple[LogPosition, int]] = deque(maxlen=POSITIONS_KEPT)
        self.found = recovered.found
        self.log_id = b""
        first_lsn = 0
        if end.sequence:
            self.log_id = recovered.log_id
            self._check = ChainCheck(end, recovered.epoch, recovered.log_id, recovered.stated_durable_lsn)
            self._positions.append((end, recovered.epoch))
            header = read_segment_header(self._storage, recovered.segments[-1])
            first_lsn = header.first_lsn if isinstance(header, SegmentHeader) else end.lsn + 1
        self._writer = MirrorWriter(self._storage, self._options, self._check.position, first_lsn)

    @classmethod
    def open(cls, storage: Storage, options: JournalOptions) -> "StandbyLog":
        """Lock the folder, bring it in order and go on behind its last frame.

        Raises Locked; Damaged, having changed nothing, where acknowledged records may be missing; StorageFailed.
        """
        storage.lock()
        try:
            copies = finish_interrupted(storage)
            recovered = recover(storage, options.accept_loss)
            if copies:
                told = f"everything that was in the folder has been put aside: {', '.join(copies)}"
                found = recovered.found
                found = replace(found, quarantined=(*copies, *found.quarantined), sentences=(*found.sentences, told))
                recovered = replace(recovered, found=found)
            return cls(storage, options, recovered)
        except BaseException:
            storage.unlock()
            raise

    @property
    def position(self) -> LogPosition:
        """The place behind what is on disk; of sequence 0 while there is nothing."""
        return self._writer.position

    @property
    def is_whole(self) -> bool:
        """Whether there is a state here to lead with: a log, and if it began with a snapshot, all up to that."""
        return self.position.sequence > 0 and self._filling is None

    @property
    def epoch(self) -> int:
        """The newest epoch in the log, or that of the snapshot received."""
        return max(self._check.epoch, 0 if self._filling is None else self._filling.epoch)

    @property
    def durable_lsn(self) -> int:
        """What the newest frame, or the snapshot, says to be durable on the primary."""
        return max(self._check.stated_durable_lsn, self.found.snapshot_lsn)

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from, in order; nothing where there is none."""
        return iter(()) if self.found.snapshot is None else read_parts(self._storage, self.found.snapshot)

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield (LSN, record) for everything after the snapshot that was here at `open`. Raises Damaged."""
        recovered = self._recovered
        cursor, last_lsn = Cursor(recovered.start), recovered.found.last_lsn
        first_lsn = recovered.found.snapshot_lsn + 1
        for at_lsn, records in records_of(self._storage, recovered.segments, cursor, first_lsn):
            if at_lsn > last_lsn:
                return
            yield from enumerate(records, at_lsn)
        if cursor.position.lsn < last_lsn:
            place = self._storage.place
            raise Damaged(f"{place} changed since it was verified: the log ends at LSN {cursor.position.lsn}")

    # Appending

    async def append(self, pieces: Sequence[bytes]) -> list[tuple[FrameHeader, bytes]]:
        """Verify pieces, write and flush them; return the frames among them once all are on disk.

        Raises Damaged, with nothing written, for anything that does not continue the log. StorageFailed is final,
        unless it is that there was no room on the disk until the caller was cancelled or the log was closed.
        """
        if self._broken is not None:
            raise self._broken
        assert not self._busy and not self._closed, "one append at a time"
        self._busy = True
        self._writer.stop_waiting.clear()
        try:
            frames = await self._in_thread(lambda: self._append(pieces))
        finally:
            self._busy = False
        if not self._note_armed:
            self._note_armed = True
            asyncio.get_running_loop().call_later(self._options.idle_frame_ms / 1000, self._note_soon)
        return frames

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """Do something in the log's own thread; somebody who is cancelled waits for it all the same."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._writer.stop_waiting.set()
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError:
                    continue
            future.exception()
            raise

    def _append(self, pieces: Sequence[bytes]) -> list[tuple[FrameHeader, bytes]]:
        began = perf_counter()
        check = self._check.copy()
        verified: list[VerifiedPiece] = [(self._verify(check, data), data) for data in pieces]
        try:
            self._writer.put(verified)
            self._check, self.log_id = check, check.log_id
            self._fill()
        except GaveUpWaiting:
            while self._check.position != self._writer.position:
                self._check.take(verified.pop(0)[1])
            self.log_id = self._check.log_id
            raise
        except StorageFailed as error:
            self._broken = error
            raise
        self._positions.append((check.position, check.epoch))
        frames = [(header, data) for header, data in verified if isinstance(header, FrameHeader)]
        counters = self._counters
        counters.batches += 1
        counters.records += sum(header.count for header, _ in frames)
        counters.seconds_last = perf_counter() - began
        counters.seconds_sum += counters.seconds_last
        return frames

    def _verify(self, check: ChainCheck, data: bytes) -> FrameHeader | SegmentHeader:
        """Take a piece; it also has to fit the beginning of a log, or the snapshot that was received."""
        before = check.position
        header = check.take(data)
        if before.sequence == 0 and isinstance(header, SegmentHeader):
            self._verify_first(header)
        after, filling = check.position, self._filling
        if filling is None or not _place(before) < _place(filling.position) <= _place(after):
            return header
        if after != filling.position:
            raise Damaged(f"the log and the snapshot at LSN {filling.lsn} contradict each other")
        return header

    def _verify_first(self, header: SegmentHeader) -> None:
        filling = self._filling
        if filling is not None and header.log_id != filling.log_id:
            raise Damaged(f"segment {header.sequence} is of another log than the snapshot")
        is_beginning = (header.sequence, header.first_lsn, header.chain) == (1, 1, first_chain(header.log_id))
        if not is_beginning and (filling is None or header.sequence != filling.position.sequence):
            raise Damaged(f"this log cannot begin with segment {header.sequence} at LSN {header.first_lsn}")

    def _fill(self) -> None:
        """Say that the folder is complete as soon as the log has come to the snapshot that was received."""
        filling, end = self._filling, self._writer.position
        if filling is not None and end.lsn >= filling.lsn and _place(end) >= _place(filling.position):
            mark_complete(self._storage)
            self._filling = None

    def _note_soon(self) -> None:
        """Note in a thread how far the log is on disk, so that damage before that place will be known as damage."""
        self._note_armed = False
        if not self._closed and self._broken is None:
            noting = asyncio.get_running_loop().run_in_executor(None, self._writer.note_position)
            noting.add_done_callback(self._on_noted)

    def _on_noted(self, noting: "asyncio.Future[None]") -> None:
        if not noting.cancelled() and isinstance(error := noting.exception(), StorageFailed):
            self._broken = self._broken or error

    # Taking history out
    def best_cut(self, starts: Sequence[LogPosition]) -> LogPosition | None:
        """Return the newest of a primary's segment starts that is a place in this log, as this log has it.

        None where there is none, or none from which the state could be rebuilt. Blocking; reads a segment for each
        that is tried.
        """
        if self._filling is not None:
            return None
        segments = segment_names(self._storage)
        begins_at_1 = bool(segments) and sequence_of(segments[0]) == 1
        for start in sorted(starts, key=_place, reverse=True):
            place = find_boundary(self._storage, start.lsn, start.chain, start.sequence)
            if place is None:
                continue
            if begins_at_1 or any(fits(self._storage, name, place) for name in snapshot_names(self._storage)):
                return place
        return None

    def cut(self, to: LogPosition, why: str) -> CutReport:
        """Put everything behind a place of `best_cut` aside, and go on from there; blocking."""
        with self._leaving():
            end, epoch = self.position, self.epoch
            files = cut_behind(self._storage, to)
            self._begin(recover(self._storage, accept_loss=False))
            if self.position != to:
                raise Damaged(f"{self._storage.place} changed while it was cut: it ends at LSN {self.position.lsn}")
        return _report(to.lsn, end.lsn, epoch, why, files)

    def start_over(self) -> CutReport:
        """Put the whole log and all snapshots aside; blocking."""
        with self._leaving():
            end, epoch = self.position, self.epoch
            first_lsn = self._first_lsn()
            files = empty(self._storage)
            self._begin(recover(self._storage, accept_loss=False))
        why = "a primary is followed whose log has nothing in common with it that could be gone back to"
        return _report(first_lsn - 1, end.lsn, epoch, why, files)

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Seal the log and let no snapshot of it get a name any more; whatever fails inside is final."""
        assert not self._busy and not self._closed, "nothing is appended while the log is cut"
        with self._folder_lock:
            self._history += 1
            try:
                self._writer.close()
                yield
            except StorageFailed as error:
                self._broken = error
                raise
            except Exception as error:
                self._broken = StorageFailed(f"the log in {self._storage.place} was left half cut: {error}")
                raise

    def _first_lsn(self) -> int:
        segments = segment_names(self._storage)
        header = read_segment_header(self._storage, segments[0]) if segments else ""
        return header.first_lsn if isinstance(header, SegmentHeader) else self.position.lsn + 1

    async def receive_snapshot(self, slices: AsyncIterator[bytes]) -> SnapshotHeader:
        """Take up a primary's snapshot; then its log is due from the beginning of the snapshot's segment.

        What was here is put aside first. Raises Damaged where the snapshot does not verify.
        """
        if self.position.sequence or self.found.snapshot is not None:
            await self._in_thread(self.start_over)
        await self._in_thread(lambda: mark_incomplete(self._storage, RECEIVING))
        try:
            header = await receive_snapshot(self._storage, slices)
        except BaseException:
            await self._in_thread(lambda: mark_complete(self._storage))
            raise
        name = snapshot_name(header.lsn)
        self.found = replace(self.found, snapshot=name, snapshot_lsn=header.lsn, snapshot_at_ms=header.at_ms)
        self._recovered = replace(self._recovered, start=header.position)
        self._filling, self.log_id = header, header.log_id
        return header

    # Snapshots of its own, reading, figures

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterable[object]) -> SnapshotInfo:
        """Write the state after `lsn`, and prune what it makes unnecessary; see `Journal.snapshot`.

        Raises Refused where the log was cut or closed meanwhile: then the state is not that of this log.
        """
        if self._filling is not None or lsn > self.position.lsn:
            raise Refused("conflict", f"the log is not here up to LSN {lsn} yet", reason="not_here_yet")
        async with self._snapshot_lock:
            began, history, counters = perf_counter(), self._history, self._counters
            try:
                position, epoch = await asyncio.to_thread(self._position_at, lsn)
                header = SnapshotHeader(FORMAT_VERSION, lsn, epoch, at_ms, self.log_id, position)
                size_bytes = await write_snapshot(self._storage, header, parts, self._same_history(history))
                await asyncio.to_thread(self._prune, history)
            except BaseException as error:
                counters.snapshot_failures += 1
                if isinstance(error, StorageFailed) and self._history != history:
                    raise _history_changed() from error
                raise
            counters.snapshot_last = SnapshotInfo(lsn, size_bytes, perf_counter() - began, snapshot_name(lsn))
            return counters.snapshot_last

    @contextmanager
    def _same_history(self, history: int) -> Iterator[None]:
        """Keep the log from being cut or closed meanwhile; raises Refused where that has happened already."""
        with self._folder_lock:
            if self._history != history:
                raise _history_changed()
            yield

    def _prune(self, history: int) -> None:
        with self._same_history(history):
            prune(self._storage, self._options.keep_snapshots)

    def _position_at(self, lsn: int) -> tuple[LogPosition, int]:
        """Return a place behind which every record after `lsn` stands, and its epoch: the end of a batch, or else
        the beginning of a segment."""
        for position, epoch in reversed(tuple(self._positions)):
            if position.lsn <= lsn:
                return position, epoch
        for name in reversed(segment_names(self._storage)):
            header = read_segment_header(self._storage, name)
            if isinstance(header, SegmentHeader) and header.first_lsn <= lsn + 1:
                return start_of(header), header.epoch
        raise Refused("gone", f"the log no longer reaches back to LSN {lsn}", reason="pruned")

    async def read_records(self, from_lsn: int, to_lsn: int | None = None) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield records in batches, read off the loop; raises Refused("gone") for what was pruned."""
        last_lsn = self.position.lsn if to_lsn is None else min(to_lsn, self.position.lsn)
        batches = read_batches(self._storage, segment_names(self._storage), from_lsn, last_lsn)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch

    def stats(self) -> JournalStats:
        """Return the figures of this moment; a commit is a batch of pieces here."""
        counters, writer = self._counters, self._writer
        return JournalStats(
            last_lsn=writer.position.lsn,
            durable_lsn=writer.position.lsn,
            epoch=self.epoch,
            queued_records=0,
            queued_bytes=0,
            commits=counters.batches,
            committed_records=counters.records,
            commit_seconds_last=counters.seconds_last,
            commit_seconds_sum=counters.seconds_sum,
            written_bytes=writer.written_bytes,
            segments=len(segment_names(self._storage)),
            snapshots=len(snapshot_names(self._storage)),
            snapshot_last=counters.snapshot_last,
            snapshot_failures=counters.snapshot_failures,
            storage_full=writer.storage_full,
            failed=self._broken is not None,
        )

    # The end

    def promote(self, least_epoch: int, lost: str | None = None) -> Journal:
        """Make the next epoch durable, in a segment of its own, and return the journal that goes on with it.

        A few milliseconds, on whatever thread it is called: seal, reserve, flush. `lost` is what may be missing of
        what the primary had acknowledged. The folder stays locked and is the journal's from now on. Raises Refused
        where there is nothing to lead with yet; StorageFailed, which is final.
        """
        if self._broken is not None:
            raise self._broken
        assert not self._busy and not self._closed, "nothing is appended any more"
        end = self.position
        if not self.is_whole:
            raise Refused("conflict", "this standby has not received the whole state yet", reason="not_here_yet")
        with self._leaving():
            found = replace(self.found, last_lsn=end.lsn, previous_epoch=self.epoch)
            recovered = replace(
                self._recovered,
                log_id=self.log_id,
                segments=tuple(segment_names(self._storage)),
                end=end,
                epoch=self.epoch,
                stated_durable_lsn=self._check.stated_durable_lsn,
                found=found,
            )
            options = replace(self._options, least_epoch=max(least_epoch, self._options.least_epoch))
            journal = Journal.resume(self._storage, options, recovered, lost)
        self._closed = True
        self._threads.shutdown(wait=False)
        return journal

    async def close(self) -> None:
        """Seal the log and let the folder go; once it was promoted, that is the journal's affair."""
        if self._closed:
            return
        self._closed = True
        self._writer.stop_waiting.set()
        try:
            await self._in_thread(self._seal)
        finally:
            self._threads.shutdown(wait=False)
            self._storage.unlock()

    def _seal(self) -> None:
        with self._folder_lock:
            self._history += 1
            if self._broken is None:
                self._writer.close()
            else:
                self._writer.abandon()


def _history_changed() -> Refused:
    return Refused("conflict", "the log was cut or closed meanwhile", reason="log_cut")


def _place(position: LogPosition) -> tuple[int, int]:
    return position.sequence, position.offset


def _report(kept_lsn: int, last_lsn: int, epoch: int, why: str, files: Sequence[str]) -> CutReport:
    count = max(0, last_lsn - kept_lsn)
    what = f"{count} records (LSN {kept_lsn + 1} to {last_lsn})" if count else "no records"
    where = ", ".join(files) or "nowhere, there was nothing"
    sentence = f"put aside {what} of epoch {epoch}: {why}; kept in {where}"
    return CutReport(count, kept_lsn + 1, last_lsn, tuple(files), sentence)
