"""The one thread that writes the log: it packs, frames, writes and flushes, one batch at a time.

The event loop hands over a batch only when the one before is answered, so exactly one is in flight and batches
grow by themselves with the load (group commit without a timer). What happened is reported to the loop as one of
the frozen messages below; after `Failure` the thread is gone and nothing is tried again.

A batch that meets a full disk waits for room instead of failing: nobody has been told that it is durable.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from engine.errors import StorageFailed
from engine.records import Record
from snapshots.segments import Piece, SegmentWriter
from snapshots.wal import pack_records


@dataclass(frozen=True, slots=True)
class Space:
    """What is left: bytes in the current segment, and whether the next one could not be reserved."""

    free_bytes: int
    disk_full: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """A batch is durable: its frames, and the headers of the segments it began."""

    pieces: Sequence[Piece]
    count: int
    size_bytes: int
    seconds: float
    space: Space


@dataclass(frozen=True, slots=True)
class Failure:
    """The log failed; nothing after the last `Commit` may be called durable."""

    error: StorageFailed


@dataclass(frozen=True, slots=True)
class Stopped:
    """The log was sealed and the thread has ended."""


Message: TypeAlias = Commit | Space | Failure | Stopped


RESERVE: Sequence[Record] = []


class CommitThread:
    """Commits batches in order and reports through `tell`, which is called in this thread.

    `perform`, `_begin` and `_put` are where another scheduler of the jobs can take the place of the thread.
    """

    def __init__(self, writer: SegmentWriter, tell: Callable[[Message], None], retry_s: float) -> None:
        self._writer = writer
        self._tell = tell
        self._retry_s = retry_s
        self._reserve_at = 0.0
        self._disk_full = False
        self._jobs: SimpleQueue[Sequence[Record] | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stanchion-log", daemon=True)

    def start(self) -> Space:
        """Reserve the next segment, in the calling thread, and begin; raises StorageFailed."""
        self._try_reserve()
        self._begin()
        return self._space()

    def commit(self, batch: Sequence[Record]) -> None:
        """Hand over a batch; an empty one becomes an empty frame."""
        self._put(batch)

    def reserve(self) -> None:
        """Try again to reserve the next segment."""
        self._put(RESERVE)

    def stop(self) -> None:
        """Seal the log after what was handed over; a batch that waits for room fails."""
        self._stopping.set()
        self._put(None)

    def join(self) -> None:
        """Wait for the thread to end."""
        self._thread.join()

    def _begin(self) -> None:
        self._thread.start()

    def _put(self, job: Sequence[Record] | None) -> None:
        self._jobs.put(job)

    def _space(self) -> Space:
        return Space(self._writer.free_bytes, self._disk_full)

    def _try_reserve(self) -> bool:
        self._disk_full = not self._writer.reserve_next()
        return not self._disk_full

    def _run(self) -> None:
        while self.perform(self._jobs.get()):
            pass

    def perform(self, job: Sequence[Record] | None) -> bool:
        """Do one job; returns whether others may follow, which they may not after None or after a failure."""
        try:
            if job is None:
                self._writer.close()
                self._tell(Stopped())
                return False
            if job is not RESERVE:
                self._tell(self._commit(job))
            self._reserve()
        except StorageFailed as error:
            self._tell(Failure(error))
            return False
        except Exception as error:
            self._tell(Failure(StorageFailed(f"the log cannot be written: {type(error).__name__}: {error}")))
            return False
        return True

    def _commit(self, batch: Sequence[Record]) -> Commit:
        began = time.perf_counter()
        size_bytes = 0
        frames = pack_records(batch, self._writer.frame_max_bytes) if batch else [(0, b"")]
        for count, payload in frames:
            self._wait_for_room(len(payload))
            size_bytes += self._writer.append(count, payload)
        return Commit(self._writer.take_pieces(), len(batch), size_bytes, time.perf_counter() - began, self._space())

    def _wait_for_room(self, payload_bytes: int) -> None:
        while not self._writer.fits(payload_bytes) and not self._try_reserve():
            self._tell(self._space())
            if self._stopping.wait(self._retry_s):
                raise StorageFailed("the log was closed while it waited for space on a full disk")

    def _reserve(self) -> None:
        """Reserve the next segment as soon as one was cut, and about once per `retry_s` while the disk is full.

        Always tells how it stands while there is none: that is what the loop sets its next try by.
        """
        if self._writer.has_reserve:
            return
        if time.monotonic() >= self._reserve_at and not self._try_reserve():
            self._reserve_at = time.monotonic() + self._retry_s
        self._tell(self._space())
