"""The writer: one frame, one flush; a cut in etcd's order; space reserved one segment ahead."""

import pytest

from engine.errors import StorageFailed
from snapshots.memory_storage import MemoryStorage
from snapshots.scan import Cursor, SegmentReader, frame_headers_after, read_segment_header
from snapshots.segments import LogPosition, SegmentWriter
from snapshots.survey import segment_names
from snapshots.wal import SegmentHeader, first_chain

LOG_ID = bytes(16)
SEGMENT_BYTES = 4096


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    storage.make_folder("log")
    return storage


@pytest.fixture
def writer(storage: MemoryStorage) -> SegmentWriter:
    writer = SegmentWriter(storage, SEGMENT_BYTES, LOG_ID, 7, LogPosition(0, first_chain(LOG_ID), 0, 0), 0)
    writer.cut_first()
    return writer


def actions(storage: MemoryStorage, since: int) -> list[str]:
    return [entry[0] for entry in storage.trace[since:] if isinstance(entry, tuple)]


def test_one_frame_is_one_write_and_one_flush(storage: MemoryStorage, writer: SegmentWriter) -> None:
    since = len(storage.trace)
    assert writer.append(3, b"payload") == 44 + 7
    assert actions(storage, since) == ["write", "fdatasync"]
    assert writer.position.lsn == writer.durable_lsn == 3


def test_a_cut_follows_the_order_of_etcd(storage: MemoryStorage, writer: SegmentWriter) -> None:
    assert writer.reserve_next()
    since = len(storage.trace)
    writer.append(1, bytes(SEGMENT_BYTES - 64 - 44))
    writer.append(1, b"next")
    assert actions(storage, since) == [
        *("write", "fdatasync"),
        *("truncate", "fsync", "close", "write", "fsync", "rename", "sync_directory"),
        *("write", "fdatasync"),
    ]
    assert not writer.has_reserve


def test_frames_form_one_chain_over_all_segments(storage: MemoryStorage, writer: SegmentWriter) -> None:
    for number in range(40):
        assert writer.reserve_next()
        writer.append(number % 3, bytes(400))
    names = segment_names(storage)
    cursor = Cursor(LogPosition(0, first_chain(LOG_ID), 1, 64))
    count = 0
    for name in names:
        header = read_segment_header(storage, name)
        assert isinstance(header, SegmentHeader)
        assert (header.first_lsn, header.chain) == (cursor.position.lsn + 1, cursor.position.chain)
        cursor.position = LogPosition(header.first_lsn - 1, header.chain, header.sequence, 64)
        reader = SegmentReader(storage, name, cursor)
        count += len(list(reader))
        assert reader.flaw is None
        assert (reader.padding_bytes == 0) == (name != names[-1])
    assert count == 40
    assert cursor.position == writer.position


def test_every_frame_states_what_was_durable_before_it(storage: MemoryStorage, writer: SegmentWriter) -> None:
    for count in (2, 0, 5):
        writer.append(count, b"")
    headers = [h for _, h in frame_headers_after(storage, segment_names(storage)[0], 0)]
    assert [(h.first_lsn, h.count, h.durable_lsn) for h in headers] == [(1, 2, 0), (3, 0, 2), (3, 5, 2)]


def test_a_frame_fits_where_there_is_room_or_a_reserve(storage: MemoryStorage, writer: SegmentWriter) -> None:
    room = SEGMENT_BYTES - 64 - 44
    assert writer.fits(room)
    assert not writer.fits(room + 1)
    assert writer.reserve_next()
    assert writer.fits(room + 1)
    assert writer.reserve_next()


def test_a_full_disk_is_said_and_a_smaller_first_segment_taken(storage: MemoryStorage) -> None:
    storage.faults.capacity_bytes = 300_000
    writer = SegmentWriter(storage, 1 << 20, LOG_ID, 7, LogPosition(0, 0, 0, 0), 0)
    writer.cut_first()
    assert writer.size_bytes == 1 << 18
    assert not writer.reserve_next()
    storage.faults.capacity_bytes = 1_000
    with pytest.raises(StorageFailed, match="make room"):
        SegmentWriter(storage, 1 << 20, LOG_ID, 7, LogPosition(0, 0, 9, 0), 0).cut_first()


def test_a_closed_log_ends_with_its_last_frame_and_keeps_its_reserve(
    storage: MemoryStorage, writer: SegmentWriter
) -> None:
    assert writer.reserve_next()
    writer.append(1, b"x")
    writer.close()
    assert storage.size_bytes(segment_names(storage)[0]) == 64 + 44 + 1
    assert storage.names("log")[-1] == "log/0000000002.reserved"
