"""Pieces of the log on their way to another machine: reading them back, and verifying them on arrival.

A piece is a segment header or one whole frame, byte for byte as it stands in the log, so that a copy made of
pieces has the same segments, names and offsets, and a position in one log means the same in every copy of it.

A position is looked for by its LSN and its chain value; the chain value is made of everything before it, so two
logs that share both at one place are the same log up to there.
"""

from collections.abc import Iterator
from dataclasses import replace

from engine.errors import Damaged, Refused, StorageFailed
from engine.records import Record
from snapshots.reading import start_of
from snapshots.scan import Cursor, SegmentReader, frame_problem, read_segment_header
from snapshots.segments import LogPosition, Piece
from snapshots.storage import Storage
from snapshots.survey import NOWHERE, segment_names
from snapshots.wal import (
    FORMAT_VERSION,
    FRAME_HEADER_BYTES,
    LOG_FOLDER,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    FrameHeader,
    SegmentHeader,
    chain_of,
    decode_frame_header,
    decode_segment_header,
    sequence_of,
    unpack_records,
)

__all__ = [
    "ChainCheck",
    "Piece",
    "find_boundary",
    "is_in_log",
    "newest_segment",
    "read_pieces",
    "records_in",
    "segment_starts",
]


def read_pieces(
    storage: Storage, after: LogPosition, limit_bytes: int, until: LogPosition | None = None
) -> list[Piece]:
    """Return the pieces behind a position, oldest first: about `limit_bytes` of them, one at least if there is one.

    Sequence 0 is the very beginning of the log. Of a log that is being written, `until` is the place behind what is
    durable: nothing that ends behind it is returned. Raises Refused("gone") where the position is no longer in this
    log, or never was. Blocking; reads up to a few MiB more than it returns.
    """
    segments = segment_names(storage)
    pieces: list[Piece] = []
    size_bytes, end = 0, after
    try:
        behind = _pieces_behind(storage, segments, after)
        while end != until and size_bytes < limit_bytes and (piece := next(behind, None)) is not None:
            if until is not None and _is_behind(piece.end, until):
                break
            pieces.append(piece)
            size_bytes, end = size_bytes + len(piece.data), piece.end
    except StorageFailed:
        if set(segments) <= set(storage.names(LOG_FOLDER)):
            raise
        raise _gone(after) from None
    return pieces


def _gone(position: LogPosition) -> Refused:
    where = f"LSN {position.lsn}, segment {position.sequence}, offset {position.offset}"
    return Refused("gone", f"this log has no place to go on from at {where}", reason="pruned")


def _is_behind(one: LogPosition, other: LogPosition) -> bool:
    return (one.sequence, one.offset) > (other.sequence, other.offset)


def _pieces_behind(storage: Storage, segments: list[str], after: LogPosition) -> Iterator[Piece]:
    cursor = Cursor(after)
    if after.sequence and (own := _of_sequence(segments, after.sequence)) is not None:
        if storage.size_bytes(own) < after.offset:
            raise _gone(after)
        reader = SegmentReader(storage, own, cursor)
        yield from _frames(reader)
        if reader.flaw is not None and cursor.position == after and own != segments[-1]:
            raise _gone(after)
        if reader.flaw is not None or reader.padding_bytes:
            return
    while (name := _of_sequence(segments, cursor.position.sequence + 1)) is not None:
        data = storage.read(name, 0, SEGMENT_HEADER_BYTES)
        header = decode_segment_header(data)
        if isinstance(header, str) or not _continues(header, cursor.position):
            if cursor.position == after:
                raise _gone(after)
            return
        cursor.position = start_of(header)
        yield Piece(cursor.position, data)
        reader = SegmentReader(storage, name, cursor)
        yield from _frames(reader)
        if reader.flaw is not None or reader.padding_bytes:
            return
    if cursor.position == after and (after.sequence == 0 or _of_sequence(segments, after.sequence) is None):
        raise _gone(after)


def _of_sequence(segments: list[str], sequence: int) -> str | None:
    return next((name for name in segments if sequence_of(name) == sequence), None)


def _continues(header: SegmentHeader, end: LogPosition) -> bool:
    return (header.sequence, header.first_lsn, header.chain) == (end.sequence + 1, end.lsn + 1, end.chain)


def _frames(reader: SegmentReader) -> Iterator[Piece]:
    for frame in reader:
        yield Piece(reader.cursor.position, reader.bytes_of(frame))


def find_boundary(storage: Storage, lsn: int, chain: int, sequence: int) -> LogPosition | None:
    """Return the place in a segment where the log has come to this LSN and chain value; None if there is none.

    Reads the segment from its beginning to there; blocking.
    """
    name = _of_sequence(segment_names(storage), sequence)
    if name is None:
        return None
    header = read_segment_header(storage, name)
    if isinstance(header, str) or header.first_lsn > lsn + 1:
        return None
    cursor = Cursor(start_of(header), header.epoch)
    reader = iter(SegmentReader(storage, name, cursor))
    while (cursor.position.lsn, cursor.position.chain) != (lsn, chain):
        if cursor.position.lsn > lsn or next(reader, None) is None:
            return None
    return cursor.position


def is_in_log(storage: Storage, position: LogPosition, epoch: int | None = None) -> bool:
    """Whether exactly this place between two pieces is in this log; blocking, reads up to one segment.

    The chain holds frames and no headers. So with the `epoch` of a log that ends there, the segment must not be of a
    later one: a primary that died before it shipped the header of its next segment has another in the same place.
    """
    segments = segment_names(storage)
    own = _of_sequence(segments, position.sequence)
    if epoch is not None and own is not None:
        header = read_segment_header(storage, own)
        if isinstance(header, SegmentHeader) and header.epoch > epoch:
            return False
    following = _of_sequence(segments, position.sequence + 1)
    if following is not None and own is None:
        header = read_segment_header(storage, following)
        return isinstance(header, SegmentHeader) and _continues(header, position)
    return find_boundary(storage, position.lsn, position.chain, position.sequence) == position


def segment_starts(storage: Storage) -> list[LogPosition]:
    """Return the places before each segment's header, newest first: where the segment before it ends.

    The offset is 0 where that segment was pruned. Blocking, but reads only the headers.
    """
    starts: list[LogPosition] = []
    segments = segment_names(storage)
    sizes = {sequence_of(name): storage.size_bytes(name) for name in segments}
    for name in reversed(segments):
        header = read_segment_header(storage, name)
        if isinstance(header, SegmentHeader):
            before = header.sequence - 1
            starts.append(LogPosition(header.first_lsn - 1, header.chain, before, sizes.get(before, 0)))
    return starts


def newest_segment(storage: Storage) -> SegmentHeader | None:
    """Return the header of the newest segment, None where there is none that can be read; reads 64 bytes."""
    names = segment_names(storage)
    header = read_segment_header(storage, names[-1]) if names else None
    return header if isinstance(header, SegmentHeader) else None


class ChainCheck:
    """Verifies pieces one after the other, from a position on; no I/O.

    `position` is the place behind the last piece taken, `epoch` and `stated_durable_lsn` are what that one said. The
    chain goes on from frame to frame, so the header of a segment that is left out shows only with the next header.
    """

    def __init__(self, position: LogPosition, epoch: int, log_id: bytes, stated_durable_lsn: int = 0) -> None:
        self._cursor = Cursor(position, epoch, stated_durable_lsn)
        self.log_id = log_id

    @classmethod
    def anywhere(cls) -> "ChainCheck":
        """Return a check that begins with whatever segment comes first; its position is of sequence 0 until then."""
        return cls(NOWHERE, 0, b"")

    @property
    def position(self) -> LogPosition:
        """The place behind the last piece."""
        return self._cursor.position

    @property
    def epoch(self) -> int:
        """The newest epoch seen."""
        return self._cursor.epoch

    @property
    def stated_durable_lsn(self) -> int:
        """What the newest frame said to be durable where it was written."""
        return self._cursor.durable_lsn

    def copy(self) -> "ChainCheck":
        """Return another one that stands in the same place."""
        return ChainCheck(self.position, self.epoch, self.log_id, self.stated_durable_lsn)

    def take(self, data: bytes) -> FrameHeader | SegmentHeader:
        """Verify the next piece and move behind it; raises Damaged, not having moved."""
        return self._take_segment(data) if data.startswith(SEGMENT_MAGIC) else self._take_frame(data)

    def _take_segment(self, data: bytes) -> SegmentHeader:
        header, end = decode_segment_header(data), self.position
        if isinstance(header, str):
            raise self._damaged(header)
        if len(data) != SEGMENT_HEADER_BYTES:
            raise self._damaged("a segment header has something behind it")
        if header.version != FORMAT_VERSION:
            raise self._damaged(f"format version {header.version}, this Stanchion reads {FORMAT_VERSION}")
        if self.log_id and header.log_id != self.log_id:
            raise self._damaged(f"segment {header.sequence} is of the log {header.log_id.hex()}")
        if end.sequence and not _continues(header, end):
            raise self._damaged(f"segment {header.sequence} from LSN {header.first_lsn} does not continue it")
        if header.epoch < self.epoch:
            raise self._damaged(f"epoch {header.epoch} follows epoch {self.epoch}")
        self._cursor = replace(self._cursor, position=start_of(header), epoch=header.epoch)
        self.log_id = header.log_id
        return header

    def _take_frame(self, data: bytes) -> FrameHeader:
        header, end = decode_frame_header(data), self.position
        if isinstance(header, str):
            raise self._damaged(header)
        if end.sequence == 0:
            raise self._damaged("a frame comes before the header of its segment")
        if len(data) != FRAME_HEADER_BYTES + header.length:
            raise self._damaged(f"a frame of {header.length} bytes of payload comes as {len(data)} bytes")
        if chain_of(data, data[FRAME_HEADER_BYTES:], end.chain) != header.chain:
            raise self._damaged("a frame's payload fails its checksum, or a frame before it is lost")
        problem = frame_problem(header, self._cursor)
        if problem is not None:
            raise self._damaged(problem)
        behind = LogPosition(header.last_lsn, header.chain, end.sequence, end.offset + len(data))
        self._cursor = Cursor(behind, header.epoch, header.durable_lsn)
        return header

    def _damaged(self, problem: str) -> Damaged:
        end = self.position
        return Damaged(f"a piece behind LSN {end.lsn} (segment {end.sequence}, offset {end.offset}): {problem}")


def records_in(data: bytes, header: FrameHeader) -> list[Record]:
    """Return the records of a whole frame; raises Damaged where one is not known here."""
    return unpack_records(data[FRAME_HEADER_BYTES:], header.count)
