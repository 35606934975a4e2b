"""Reading records out of the log: for replay at start, and for exports while a daemon writes."""

from collections.abc import Iterator, Sequence

from engine.errors import Damaged, Refused, StorageFailed
from engine.records import Record
from snapshots.scan import Cursor, SegmentReader, read_segment_header
from snapshots.segments import LogPosition
from snapshots.storage import Storage
from snapshots.wal import LOG_FOLDER, SEGMENT_HEADER_BYTES, SegmentHeader, sequence_of, unpack_records

BATCH_RECORDS = 2_000


def records_of(
    storage: Storage, segments: Sequence[str], cursor: Cursor, from_lsn: int
) -> Iterator[tuple[int, list[Record]]]:
    """Yield (first LSN, records) of each frame behind the cursor, without what stands before `from_lsn`.

    The segments are in order; those before the cursor's are passed over. Raises Damaged for a payload that is
    not made of known records. A frame that is not (yet) whole ends the iteration.
    """
    for name in segments:
        if sequence_of(name) < cursor.position.sequence:
            continue
        if sequence_of(name) > cursor.position.sequence:
            header = read_segment_header(storage, name)
            if not isinstance(header, SegmentHeader) or header.first_lsn != cursor.position.lsn + 1:
                return
            cursor.position = start_of(header)
        for frame in SegmentReader(storage, name, cursor):
            first_lsn, last_lsn = frame.header.first_lsn, frame.header.last_lsn
            if frame.header.count == 0 or last_lsn < from_lsn:
                continue
            try:
                records = unpack_records(frame.payload, frame.header.count)
            except Damaged as error:
                place = f"{storage.place}/{name} at offset {frame.offset}, LSN {first_lsn} to {last_lsn}"
                raise Damaged(f"{place}: {error}") from error
            yield max(first_lsn, from_lsn), records[max(0, from_lsn - first_lsn) :]


def start_of(header: SegmentHeader) -> LogPosition:
    """Return the position before the first frame of a segment."""
    return LogPosition(header.first_lsn - 1, header.chain, header.sequence, SEGMENT_HEADER_BYTES)


def read_batches(
    storage: Storage, segments: Sequence[str], from_lsn: int, last_lsn: int
) -> Iterator[list[tuple[int, Record]]]:
    """Yield the records `from_lsn` to `last_lsn` in batches; raises Refused("gone") where they were pruned.

    Raises Damaged rather than ending short: an export that lacks its end would look whole.
    """
    try:
        yield from _batches(storage, segments, from_lsn, last_lsn)
    except StorageFailed:
        if set(segments) <= set(storage.names(LOG_FOLDER)):
            raise
        raise _gone(from_lsn) from None


def _gone(from_lsn: int) -> Refused:
    return Refused("gone", f"the log no longer reaches back to LSN {from_lsn}", reason="pruned")


def _batches(
    storage: Storage, segments: Sequence[str], from_lsn: int, last_lsn: int
) -> Iterator[list[tuple[int, Record]]]:
    start: LogPosition | None = None
    for name in segments:
        header = read_segment_header(storage, name)
        if isinstance(header, SegmentHeader) and header.first_lsn <= from_lsn:
            start = start_of(header)
    if start is None:
        raise _gone(from_lsn)
    batch: list[tuple[int, Record]] = []
    reached_lsn = from_lsn - 1
    for first_lsn, records in records_of(storage, segments, Cursor(start), from_lsn):
        batch += [pair for pair in enumerate(records, first_lsn) if pair[0] <= last_lsn]
        reached_lsn = first_lsn + len(records) - 1
        if len(batch) >= BATCH_RECORDS:
            yield batch
            batch = []
        if reached_lsn >= last_lsn:
            break
    if batch:
        yield batch
    if reached_lsn < last_lsn:
        raise Damaged(
            f"{storage.place}: the log cannot be read behind LSN {reached_lsn}, it should reach to {last_lsn}"
        )
