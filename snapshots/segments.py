"""The writer of the log: puts frames into segments and cuts a new segment in etcd's order.

One frame is one write and one fdatasync; the next frame is written only after the one before is durable, so a
crash can tear at most the last frame. A cut: seal the segment (cut off the reserved zeros, fsync), take the
space reserved under a temporary name, write the header there, fsync, rename, fsync the folder. A segment under
its own name is therefore always complete, and every segment but the last ends exactly with its last frame.

Space is reserved one segment ahead. Where none can be had the writer says so and goes on to the end of the
segment it has; the caller decides whom it still serves (`journal`, "Full disk").

A process never writes into a segment it did not make: opening a log seals what is there and cuts, and so
makes the new epoch durable, in the header of its first segment, before anything is written under it.
"""

from dataclasses import dataclass
from typing import NamedTuple

from engine.errors import StorageFailed
from snapshots.storage import Storage, StorageFile
from snapshots.wal import (
    FORMAT_VERSION,
    FRAME_HEADER_BYTES,
    LOG_FOLDER,
    PAYLOAD_MAX_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    SegmentHeader,
    encode_frame,
    encode_segment_header,
    reserved_name,
    segment_name,
)

SMALLEST_SEGMENT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A place between two frames: the last LSN before it, the chain value there, and the segment and offset."""

    lsn: int
    chain: int
    sequence: int
    offset: int


class Piece(NamedTuple):
    """Bytes of the log exactly as they stand on the disk, a segment header or one whole frame, and the place behind."""

    end: LogPosition
    data: bytes


def seal_segment(file: StorageFile, length: int) -> None:
    """Cut off the reserved zeros, make everything in the segment durable, and close it."""
    file.truncate(length)
    file.fsync()
    file.close()


def name_segment(storage: Storage, header: SegmentHeader, data: bytes) -> StorageFile:
    """Make the reserved space of a segment that segment, durably, and return it open; `data` is the header's bytes."""
    reserved = reserved_name(header.sequence)
    file = storage.open_file(reserved)
    file.write(0, data)
    file.fsync()
    storage.rename(reserved, segment_name(header.sequence, header.first_lsn))
    storage.sync_directory(LOG_FOLDER)
    return file


class SegmentWriter:
    """Appends frames behind a position. Not for use in two threads at once; any failure is final."""

    def __init__(
        self, storage: Storage, segment_bytes: int, log_id: bytes, epoch: int, end: LogPosition, durable_lsn: int
    ) -> None:
        """Continue behind `end`, whose segment is sealed; `cut_first` must be called before anything else."""
        self._storage = storage
        self._segment_bytes = segment_bytes
        self._log_id = log_id
        self._epoch = epoch
        self._file: StorageFile | None = None
        self._reserved_bytes = 0
        self._pieces: list[Piece] = []
        self.size_bytes = 0
        self.position = end
        self.durable_lsn = durable_lsn
        self.frame_max_bytes = min(PAYLOAD_MAX_BYTES, segment_bytes // 4)

    @property
    def has_reserve(self) -> bool:
        return self._reserved_bytes > 0

    @property
    def free_bytes(self) -> int:
        """Bytes left in the current segment."""
        return self.size_bytes - self.position.offset

    def cut_first(self) -> None:
        """Make this process's first segment, a smaller one where the disk is nearly full; raises StorageFailed."""
        length = self._segment_bytes
        while not self._reserve(length):
            length //= 2
            if length < SMALLEST_SEGMENT_BYTES:
                raise StorageFailed(f"no space for a log segment in {self._storage.place}: make room, then start again")
        self._open_next()
        self._pieces.clear()

    def reserve_next(self) -> bool:
        """Reserve the next segment unless that is done; False means that the disk is full."""
        return self.has_reserve or self._reserve(self._segment_bytes)

    def append(self, count: int, payload: bytes) -> int:
        """Make one frame durable and return its bytes; cuts first where the segment has no room for it.

        The caller has checked `fits`. Raises StorageFailed, after which the writer must not be used.
        """
        if FRAME_HEADER_BYTES + len(payload) > self.free_bytes:
            self._seal()
            self._open_next()
        assert self._file is not None
        end = self.position
        header = FrameHeader(self._epoch, end.lsn + 1, count, len(payload), self.durable_lsn, 0)
        frame, chain = encode_frame(header, payload, end.chain)
        self._file.write(end.offset, frame)
        self._file.fdatasync()
        self.position = LogPosition(end.lsn + count, chain, end.sequence, end.offset + len(frame))
        self.durable_lsn = self.position.lsn
        self._pieces.append(Piece(self.position, frame))
        return len(frame)

    def take_pieces(self) -> list[Piece]:
        """Return what was made durable since the last call, the headers of new segments too."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def fits(self, payload_bytes: int) -> bool:
        """Whether a frame can be written now, in this segment or in the reserved one."""
        return self.has_reserve or FRAME_HEADER_BYTES + payload_bytes <= self.free_bytes

    def close(self) -> None:
        """Seal the segment. The reserved one stays: the next start finds its space, and misses a segment taken away."""
        self._seal()

    def _reserve(self, length: int) -> bool:
        if self._storage.reserve(reserved_name(self.position.sequence + 1), length):
            self._reserved_bytes = length
        return self.has_reserve

    def _seal(self) -> None:
        assert self._file is not None
        seal_segment(self._file, self.position.offset)
        self._file = None

    def _open_next(self) -> None:
        end = self.position
        header = SegmentHeader(FORMAT_VERSION, end.sequence + 1, end.lsn + 1, self._epoch, end.chain, self._log_id)
        data = encode_segment_header(header)
        self._file = name_segment(self._storage, header, data)
        self.size_bytes, self._reserved_bytes = self._reserved_bytes, 0
        self.position = LogPosition(end.lsn, end.chain, header.sequence, SEGMENT_HEADER_BYTES)
        self._pieces.append(Piece(self.position, data))
