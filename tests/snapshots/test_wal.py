"""The log's format, byte by byte, and files of every released version, which must stay readable for ever."""

import os
import struct
from pathlib import Path

import google_crc32c
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged
from engine.records import (
    KINDS,
    Admitted,
    Banned,
    Checkpoint,
    Closed,
    Completed,
    Configured,
    Deleted,
    Expired,
    Extended,
    Joined,
    Lapsed,
    Left,
    LobbyOpened,
    Messaged,
    Opened,
    Parked,
    Paused,
    Purged,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Reopened,
    Resumed,
    Returned,
    Started,
    Transferred,
    encode,
    kind_of,
)
from snapshots.backup import backup, inspect, verify
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage
from snapshots.wal import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    FrameHeader,
    SegmentHeader,
    chain_of,
    decode_frame_header,
    decode_segment_header,
    encode_frame,
    encode_segment_header,
    first_chain,
    pack_records,
    segment_name,
    sequence_of,
    unpack_records,
)

GOLDEN = Path(__file__).parent / "golden"
REWRITE = os.environ.get("GOLDEN_REWRITE") == "1"
LOG_ID = b"0123456789abcdef"

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def test_checksums_are_castagnoli_in_c() -> None:
    assert google_crc32c.implementation == "c"
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_a_segment_header_is_laid_out_as_the_format_says() -> None:
    header = encode_segment_header(SegmentHeader(1, 2, 3, 4, 5, LOG_ID))
    body = b"STANLOG\n" + struct.pack(">IQQQI", 1, 2, 3, 4, 5) + LOG_ID + bytes(4)
    assert header == body + struct.pack(">I", google_crc32c.value(body))
    assert len(header) == SEGMENT_HEADER_BYTES == 64


def test_a_frame_is_laid_out_as_the_format_says() -> None:
    payload = msgpack.packb([["left", 1, "e", 7, 8]])
    frame, chain = encode_frame(FrameHeader(1, 2, 1, 0, 1, 0), payload, first_chain(LOG_ID))
    head = b"\xc1SF1" + struct.pack(">QQIIQ", 1, 2, 1, len(payload), 1)
    assert chain == google_crc32c.extend(google_crc32c.value(LOG_ID), head + payload)
    head += struct.pack(">I", chain)
    assert frame == head + struct.pack(">I", google_crc32c.value(head)) + payload
    assert len(head) + 4 == FRAME_HEADER_BYTES == 44


@given(st.builds(SegmentHeader, u32, u64, u64, u64, u32, st.binary(min_size=16, max_size=16)))
def test_segment_headers_come_back_as_they_were(header: SegmentHeader) -> None:
    assert decode_segment_header(encode_segment_header(header)) == header


@given(u64, u64, u32, u64, st.binary(max_size=300), u32)
def test_frames_come_back_as_they_were(
    epoch: int, first_lsn: int, count: int, durable_lsn: int, payload: bytes, previous: int
) -> None:
    frame, chain = encode_frame(FrameHeader(epoch, first_lsn, count, 0, durable_lsn, 0), payload, previous)
    header = decode_frame_header(frame)
    assert header == FrameHeader(epoch, first_lsn, count, len(payload), durable_lsn, chain)
    assert chain_of(frame, frame[FRAME_HEADER_BYTES:], previous) == chain


@given(st.data())
def test_no_changed_bit_of_a_frame_goes_unnoticed(data: st.DataObject) -> None:
    frame, _ = encode_frame(FrameHeader(1, 2, 3, 0, 1, 0), b"some payload", 99)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    bad = bytearray(frame)
    bad[bit // 8] ^= 1 << bit % 8
    header = decode_frame_header(bytes(bad))
    assert isinstance(header, str) or chain_of(bytes(bad), bytes(bad[FRAME_HEADER_BYTES:]), 99) != header.chain


@given(st.binary(max_size=200))
def test_garbage_is_never_a_header(garbage: bytes) -> None:
    assert isinstance(decode_frame_header(garbage), str)
    assert isinstance(decode_segment_header(garbage), str)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_garbage_is_never_a_payload(garbage: bytes, count: int) -> None:
    try:
        records = unpack_records(garbage, count)
    except Damaged:
        return
    assert len(records) == count


@settings(max_examples=30)
@given(st.lists(st.builds(Left, st.text(max_size=40), u32, u32), min_size=1, max_size=60), st.integers(120, 400))
def test_records_are_split_over_payloads_in_order_and_within_the_limit(records: list[Record], limit: int) -> None:
    longest = max(len(msgpack.packb([encode(record)], unicode_errors="surrogatepass")) for record in records)
    payloads = pack_records(records, max(limit, longest))
    assert all(len(payload) <= max(limit, longest) for _, payload in payloads)
    assert [record for count, payload in payloads for record in unpack_records(payload, count)] == records


def test_a_record_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack_records([Left("x" * 100, 1, 1)], 50)


def test_segments_sort_by_name_and_carry_their_sequence() -> None:
    names = [segment_name(sequence, sequence * 7) for sequence in (1, 9, 10, 4_000_000_000)]
    assert names == sorted(names)
    assert [sequence_of(name) for name in names] == [1, 9, 10, 4_000_000_000]


@pytest.mark.parametrize("name", ["log/notes.seg", "log/.seg", "log/00000x0001-1.seg", "log/١٢٣٤٥٦٧٨٩٠-1.seg"])
def test_a_name_that_is_not_of_the_log_is_pointed_at(name: str) -> None:
    with pytest.raises(Damaged, match="is not a name of the log"):
        sequence_of(name)


GOLDEN_RECORDS: list[Record] = [
    Started(1_000, 1 << 20, 1_700_000_000_000, 0, None),
    Configured("concert", 1_001, {"capacity": 500, "name": "Grüße 🎟"}, "admin", None, "first"),
    LobbyOpened("concert", 1_002, "1-2", "c0" * 32, "lottery of 1 May", "admin", None),
    *(
        Joined("concert", 1_003 + n, n, n << 32, f"visitor-{n}", (1 << 64) - n, n % 3, 1 + n % 2, n % 5 == 0)
        for n in range(1, 40)
    ),
    Opened("concert", 1_900, "5e" * 32, "4 8 15 16 23 42", 39, "schedule", None),
    Parked("concert", 2_000, [1, 2], [1_500, 1_600]),
    Released("concert", 2_000, [3, 4, 5], 302_000, False, "pacer", None, None),
    Returned("concert", 2_001, 2),
    Redeemed("concert", 2_002, 3, "jti", "key", 1_700_000_001_000, 602_002, 3_602_002, False, "site"),
    Extended("concert", 2_003, 3, 902_003, "site"),
    Lapsed("concert", 2_004, 4),
    Admitted("concert", 2_005, 4, 302_005, "admin", "a wheelchair", None),
    Transferred("concert", 2_006, 6, 1, (1 << 64) - 77, True),
    Completed("concert", 2_007, 3, "abandoned", False, "site"),
    Expired("concert", 2_008, 5, "unclaimed"),
    Banned("concert", 2_009, "visitor-7", "admin", "a tout", "seen before"),
    Removed("concert", 2_009, 7, "admin", "a tout", None),
    Left("concert", 2_010, 8),
    Messaged("concert", 2_011, "doors at eight", None, "admin", None),
    Paused("concert", 2_012, "admin", "the till is down", None),
    Resumed("concert", 2_013, "admin", None),
    Closed("concert", 2_014, "admin", "all gone", "sold out", None),
    Reopened("concert", 2_015, "admin", None),
    Readmitted("concert", 2_016, 50, 50 << 32 | 50, "visitor-50", 1),
    Checkpoint(2_017, 1 << 63),
    Purged("concert", 2_018),
    Deleted("concert", 2_019, "admin", "over"),
]


def test_the_files_hold_every_kind_of_record() -> None:
    assert {kind_of(record) for record in GOLDEN_RECORDS} == set(KINDS)


async def write_golden(folder: Path, scratch: Path) -> None:
    """Write the files of the present format; done once for each released version."""
    journal = Journal.open(DiskStorage(scratch), JournalOptions(segment_mib=1 / 128))
    await journal.start()
    for at in range(0, len(GOLDEN_RECORDS), 5):
        await journal.when_durable(journal.append(GOLDEN_RECORDS[at : at + 5]))
        if at == 20:
            await journal.snapshot(journal.last_lsn, 1_020, [{"rooms": 1}, [["concert", 22]]])
    await journal.close()
    backup(DiskStorage(scratch), folder)


def transcript(storage: DiskStorage) -> str:
    frames = [
        f"{f.segment} at {f.offset}: epoch {f.epoch}, LSN {f.first_lsn}-{f.last_lsn}, durable {f.durable_lsn}, "
        f"{f.size_bytes} bytes, {dict(f.kinds)}"
        for f in inspect(storage)
    ]
    report = verify(storage)
    frames.append(f"{report.decision}; start from {report.start}; {report.records} records after the snapshot")
    return "\n".join([*frames, *report.problems, ""])


@pytest.mark.parametrize("version", ["v1"])
async def test_files_of_every_released_format_stay_readable(version: str, tmp_path: Path) -> None:
    folder = GOLDEN / version
    if REWRITE:
        await write_golden(folder, tmp_path / "scratch")
        (folder / "transcript.txt").write_text(transcript(DiskStorage(folder)))
    assert transcript(DiskStorage(folder)) == (folder / "transcript.txt").read_text()
    backup(DiskStorage(folder), tmp_path / "copy")
    journal = Journal.open(DiskStorage(tmp_path / "copy"), JournalOptions(segment_mib=1))
    assert list(journal.snapshot_parts()) == [{"rooms": 1}, (("concert", 22),)]
    tail = [record for _, record in journal.replay()]
    assert [encode(record) for record in tail] == [
        msgpack.unpackb(msgpack.packb(encode(record)), use_list=False) for record in GOLDEN_RECORDS[25:]
    ]
    await journal.close()
