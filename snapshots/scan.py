"""Reading the log back, frame by frame, and saying where it stops being what was written.

A reader judges nothing: it follows the chain to the first byte that contradicts it and describes that as a
`Flaw`. What a flaw means (a torn tail, damage, a file of another log) is decided in `recovery`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from snapshots.segments import LogPosition
from snapshots.storage import Storage
from snapshots.wal import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    FrameHeader,
    SegmentHeader,
    chain_of,
    decode_frame_header,
    decode_segment_header,
)

BLOCK_BYTES = 4 << 20


class FlawKind(Enum):
    """What sort of contradiction a flaw is."""

    BYTES = "bytes"
    EPOCH = "epoch"


@dataclass(frozen=True, slots=True)
class Flaw:
    """The first contradiction in a segment: at which byte, with which LSN due there, and what is wrong.

    `written_past` tells that something was written after the flawed frame, which is done only once it is durable.
    """

    name: str
    offset: int
    due_lsn: int
    problem: str
    kind: FlawKind = FlawKind.BYTES
    written_past: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose chain value was verified, and the offset at which it begins."""

    header: FrameHeader
    payload: bytes
    offset: int


@dataclass(slots=True)
class Cursor:
    """Where a reader stands in the whole log, carried from segment to segment."""

    position: LogPosition
    epoch: int = 0
    durable_lsn: int = 0


def frame_problem(header: FrameHeader, cursor: Cursor) -> str | None:
    """Return how a frame whose chain value is right contradicts what stands before it; None where it does not."""
    if header.first_lsn != cursor.position.lsn + 1:
        return f"a frame begins at LSN {header.first_lsn}"
    if header.epoch < cursor.epoch:
        return f"epoch {header.epoch} follows epoch {cursor.epoch}"
    if not cursor.durable_lsn <= header.durable_lsn < header.first_lsn:
        return f"a frame states the durable LSN {header.durable_lsn}"
    return None


class SegmentReader:
    """Iterates over the valid frames of one segment from the cursor on, moving the cursor.

    After the iteration `flaw` is the contradiction that ended it, or None where the segment ended well, with
    `padding_bytes` of reserved zeros after the last frame. Reads in blocks; never holds the whole segment.
    """

    def __init__(self, storage: Storage, name: str, cursor: Cursor) -> None:
        self.name = name
        self.cursor = cursor
        self.size_bytes = storage.size_bytes(name)
        self.flaw: Flaw | None = None
        self.padding_bytes = 0
        self._storage = storage
        self._block = b""
        self._block_offset = 0

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._next_frame()) is not None:
            yield frame

    def bytes_of(self, frame: Frame) -> bytes:
        """Return the whole of a frame just read, header and payload, as it stands in the segment."""
        length = FRAME_HEADER_BYTES + frame.header.length
        block, index = self._window(frame.offset, length)
        return block[index : index + length]

    def _window(self, offset: int, length: int) -> tuple[bytes, int]:
        """Return a buffer and the index in it at which up to `length` bytes from `offset` begin."""
        index = offset - self._block_offset
        if index < 0 or index + length > len(self._block):
            self._block = self._storage.read(self.name, offset, max(length, BLOCK_BYTES))
            self._block_offset, index = offset, 0
        return self._block, index

    def _next_frame(self) -> Frame | None:
        end = self.cursor.position
        block, index = self._window(end.offset, FRAME_HEADER_BYTES)
        head = block[index : index + FRAME_HEADER_BYTES]
        if not head.strip(b"\0"):
            return self._end_of_segment(end.offset)
        header = decode_frame_header(head)
        if isinstance(header, str):
            return self._stop(header)
        length = FRAME_HEADER_BYTES + header.length
        block, index = self._window(end.offset, length)
        payload = block[index + FRAME_HEADER_BYTES : index + length]
        if len(payload) < header.length:
            return self._stop("a frame is cut short")
        if chain_of(head, payload, end.chain) != header.chain:
            written_past = not is_zero(self._storage, self.name, end.offset + length)
            return self._stop("a frame's payload fails its checksum, or a frame before it is lost", written_past)
        return self._accept(Frame(header, payload, end.offset))

    def _accept(self, frame: Frame) -> Frame | None:
        header, cursor = frame.header, self.cursor
        problem = frame_problem(header, cursor)
        if problem is not None:
            return self._stop(problem, kind=FlawKind.EPOCH if header.epoch < cursor.epoch else FlawKind.BYTES)
        end = frame.offset + FRAME_HEADER_BYTES + header.length
        cursor.position = LogPosition(header.last_lsn, header.chain, cursor.position.sequence, end)
        cursor.epoch, cursor.durable_lsn = header.epoch, header.durable_lsn
        return frame

    def _end_of_segment(self, offset: int) -> Frame | None:
        if is_zero(self._storage, self.name, offset):
            self.padding_bytes = self.size_bytes - offset
            return None
        return self._stop("there are bytes after an empty place")

    def _stop(self, problem: str, written_past: bool = False, kind: FlawKind = FlawKind.BYTES) -> Frame | None:
        end = self.cursor.position
        self.flaw = Flaw(self.name, end.offset, end.lsn + 1, problem, kind, written_past)
        return None


def is_zero(storage: Storage, name: str, offset: int) -> bool:
    """Whether a file holds nothing but zeros from `offset` on."""
    while block := storage.read(name, offset, BLOCK_BYTES):
        if block.strip(b"\0"):
            return False
        offset += len(block)
    return True


def read_segment_header(storage: Storage, name: str) -> SegmentHeader | str:
    """Return the header a segment begins with, or what is wrong with it."""
    return decode_segment_header(storage.read(name, 0, 64))


def frame_headers_after(storage: Storage, name: str, offset: int) -> list[tuple[int, FrameHeader]]:
    """Return the offset and header of everything from `offset` on that has a valid frame header, chain or not."""
    data = storage.read(name, offset, storage.size_bytes(name) - offset)
    found: list[tuple[int, FrameHeader]] = []
    index = data.find(FRAME_MAGIC)
    while index >= 0:
        header = decode_frame_header(data, index)
        if isinstance(header, FrameHeader):
            found.append((offset + index, header))
        index = data.find(FRAME_MAGIC, index + 1)
    return found
