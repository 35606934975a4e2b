"""The writer of a standby's log: puts verified pieces into segments like those they come from.

A batch of frames is one write and one flush, or one for each segment it reaches into; a cut follows the same order
as the primary's (`segments`). The space of a segment is reserved when it is begun, and more of it when the
primary's goes on for longer. On a full disk the writer waits for room: the primary then sees no progress and goes
on alone, and nothing has been acknowledged that is not on disk.
"""

import threading
from collections.abc import Callable, Sequence

from engine.errors import StorageFailed
from snapshots.notes import FlushedNote
from snapshots.options import JournalOptions
from snapshots.reading import start_of
from snapshots.segments import SMALLEST_SEGMENT_BYTES, LogPosition, name_segment, seal_segment
from snapshots.storage import Storage, StorageFile
from snapshots.wal import FrameHeader, SegmentHeader, reserved_name, segment_name

VerifiedPiece = tuple[FrameHeader | SegmentHeader, bytes]


class GaveUpWaiting(StorageFailed):
    """There was no room on the disk until nobody waited any more; nothing is broken by it."""


class MirrorWriter:
    """Appends pieces behind a position. Not for use in two threads at once; any failure but a full disk is final.

    `position` is the place behind what is on disk. `stop_waiting` makes whoever waits for room give up.
    """

    def __init__(self, storage: Storage, options: JournalOptions, position: LogPosition, first_lsn: int) -> None:
        """Continue behind `position`, in a segment whose first record has `first_lsn`; at sequence 0 from nothing."""
        self._storage = storage
        self._segment_bytes = options.segment_bytes
        self._retry_s = options.reserve_retry_s
        self._name = segment_name(position.sequence, first_lsn)
        self._file: StorageFile | None = None
        self._size_bytes = 0
        self._note = FlushedNote(storage)
        self.position = position
        self.written_bytes = 0
        self.storage_full = False
        self.stop_waiting = threading.Event()
        if position.sequence:
            self._note.begin(position)

    def put(self, pieces: Sequence[VerifiedPiece]) -> None:
        """Write pieces in order and return when all are on disk.

        Raises StorageFailed. Where it only gave up waiting for room, `position` is as far as it came, and what is
        behind that can be put again.
        """
        frames: list[tuple[FrameHeader, bytes]] = []
        end = self.position
        for header, data in pieces:
            if isinstance(header, FrameHeader):
                frames.append((header, data))
                continue
            end = self._write(frames, end)
            frames = []
            self._begin_segment(header, data, end)
            end = self.position
        if frames:
            end = self._write(frames, end)
            self._open().fdatasync()
            self.position = end

    def note_position(self) -> None:
        """Note durably how far the log is on disk; may be called from another thread."""
        if self.position.sequence:
            self._note.move(self.position)

    def close(self) -> None:
        """Seal the segment."""
        if self.position.sequence:
            seal_segment(self._open(), self.position.offset)
            self._file = None
            self.note_position()
        self._note.close()

    def abandon(self) -> None:
        """Let the files go as they are."""
        self._note.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> StorageFile:
        if self._file is None:
            self._file = self._storage.open_file(self._name)
            self._size_bytes = self._storage.size_bytes(self._name)
        return self._file

    def _write(self, frames: Sequence[tuple[FrameHeader, bytes]], end: LogPosition) -> LogPosition:
        """Write frames behind `end`, not yet flushed; returns the place behind them."""
        if not frames:
            return end
        data = frames[0][1] if len(frames) == 1 else b"".join(frame for _, frame in frames)
        offset = end.offset + len(data)
        file = self._open()
        self._until_there_is_room(lambda: offset <= self._size_bytes or self._grow(file, offset))
        file.write(end.offset, data)
        self.written_bytes += len(data)
        last = frames[-1][0]
        return LogPosition(last.last_lsn, last.chain, end.sequence, offset)

    def _begin_segment(self, header: SegmentHeader, data: bytes, end: LogPosition) -> None:
        """Seal the segment that ends at `end`, where there is one, and begin the next in its own name."""
        if end.sequence:
            seal_segment(self._open(), end.offset)
            self._file = None
            self.position = end
        self._until_there_is_room(lambda: self._reserve(header.sequence))
        self._file = name_segment(self._storage, header, data)
        self._name = segment_name(header.sequence, header.first_lsn)
        self.position = start_of(header)
        if end.sequence:
            self._note.move(self.position)
        else:
            self._note.begin(self.position)

    def _reserve(self, sequence: int) -> bool:
        """Reserve a segment to come, a smaller one where the disk is nearly full."""
        length = self._segment_bytes
        while not self._storage.reserve(reserved_name(sequence), length):
            length //= 2
            if length < SMALLEST_SEGMENT_BYTES:
                return False
        self._size_bytes = length
        return True

    def _grow(self, file: StorageFile, length: int) -> bool:
        """Reserve more of the current segment, just what is needed where there is no more."""
        wanted = self._segment_bytes if length <= self._segment_bytes else length + self._segment_bytes // 4
        for size_bytes in (wanted, length):
            if file.reserve(size_bytes):
                self._size_bytes = size_bytes
                return True
        return False

    def _until_there_is_room(self, found: Callable[[], bool]) -> None:
        while not found():
            self.storage_full = True
            if self.stop_waiting.wait(self._retry_s):
                raise GaveUpWaiting(f"no space left in {self._storage.place} for what the primary has written")
        self.storage_full = False
