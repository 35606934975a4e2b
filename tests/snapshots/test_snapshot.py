"""The snapshot format, and that a snapshot is whole or is not one."""

import hashlib
import struct
from collections.abc import Iterator

import google_crc32c
import msgpack
import pytest

from engine.errors import Damaged, StorageFailed
from snapshots.memory_storage import MemoryStorage
from snapshots.retention import prune
from snapshots.segments import LogPosition
from snapshots.snapshot import (
    PART_MAX_BYTES,
    SLICE_BYTES,
    SnapshotFlaw,
    SnapshotHeader,
    read_parts,
    snapshot_name,
    verify_snapshot,
    write_snapshot,
)

HEADER = SnapshotHeader(1, 77, 1 << 20, 1_234, b"0123456789abcdef", LogPosition(76, 0xABCD, 3, 4_096))


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    for folder in ("log", "snapshots"):
        storage.make_folder(folder)
    return storage


def content_of(storage: MemoryStorage, name: str) -> bytes:
    return storage.read(name, 0, storage.size_bytes(name))


async def test_a_snapshot_is_laid_out_as_the_format_says(storage: MemoryStorage) -> None:
    size_bytes = await write_snapshot(storage, HEADER, ["one", [2]])
    head = b"STANSNP\n" + struct.pack(">IQQQ", 1, 77, 1 << 20, 1_234) + b"0123456789abcdef"
    head += struct.pack(">IQQQ", 0xABCD, 76, 3, 4_096) + bytes(12)
    body = head + struct.pack(">I", google_crc32c.value(head))
    for part in ("one", [2]):
        payload = msgpack.packb(part)
        body += b"PART" + struct.pack(">II", len(payload), google_crc32c.value(payload)) + payload
    trailer = b"DONE" + struct.pack(">I", 2) + hashlib.blake2b(body, digest_size=32).digest()
    expected = body + trailer + struct.pack(">I", google_crc32c.value(trailer))
    assert content_of(storage, snapshot_name(77)) == expected
    assert size_bytes == len(expected)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
async def test_parts_come_back_in_order(storage: MemoryStorage, count: int) -> None:
    parts = [{"part": number, 5: ["x" * number, None, -number, 1.5, b"\xff"]} for number in range(count)]
    await write_snapshot(storage, HEADER, iter(parts))
    assert verify_snapshot(storage, snapshot_name(77)) == HEADER
    read = list(read_parts(storage, snapshot_name(77)))
    assert read == [{**part, 5: tuple(part[5])} for part in parts]


async def test_parts_are_consumed_lazily_and_written_in_slices(storage: MemoryStorage) -> None:
    written: list[int] = []

    def parts() -> Iterator[bytes]:
        for _ in range(12):
            writes = [entry for entry in storage.trace if not hasattr(entry, "value") and entry[0] == "write"]
            written.append(len(writes))
            yield bytes(100_000)

    await write_snapshot(storage, HEADER, parts())
    assert written == sorted(written)
    assert written[-1] >= 12 * 100_000 // SLICE_BYTES - 1


async def test_every_cut_and_every_flip_of_a_snapshot_is_found(storage: MemoryStorage) -> None:
    await write_snapshot(storage, HEADER, ["one", [2], {"three": 3}])
    name = snapshot_name(77)
    whole = content_of(storage, name)
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        for bad in (whole[:at], flipped, whole + bytes(at + 1)):
            file = storage.create(name)
            file.write(0, bad)
            assert isinstance(verify_snapshot(storage, name), SnapshotFlaw)
            with pytest.raises(Damaged):
                list(read_parts(storage, name)) if len(bad) > 96 and bad[:96] == whole[:96] else damaged()


def damaged() -> None:
    raise Damaged("a header that fails is not read further")


async def test_swapped_and_repeated_parts_are_found(storage: MemoryStorage) -> None:
    await write_snapshot(storage, HEADER, ["a", "b"])
    name = snapshot_name(77)
    whole = content_of(storage, name)
    first, second = whole[96:110], whole[110:124]
    for body in (second + first, first + first, first, first + second + second):
        file = storage.create(name)
        file.write(0, whole[:96] + body + whole[124:])
        assert isinstance(verify_snapshot(storage, name), SnapshotFlaw)


async def test_a_snapshot_under_the_name_of_another_is_not_taken_for_it(storage: MemoryStorage) -> None:
    await write_snapshot(storage, HEADER, ["a"])
    storage.rename(snapshot_name(77), snapshot_name(99))
    flaw = verify_snapshot(storage, snapshot_name(99))
    assert isinstance(flaw, SnapshotFlaw)
    assert "its name another" in flaw.problem


async def test_a_part_above_the_limit_is_refused_and_leaves_nothing(storage: MemoryStorage) -> None:
    with pytest.raises(ValueError, match="above the limit"):
        await write_snapshot(storage, HEADER, [bytes(PART_MAX_BYTES + 1)])
    assert storage.names("snapshots") == []


@pytest.mark.parametrize("call", range(1, 9))
async def test_a_write_that_fails_leaves_no_snapshot_and_no_rest(storage: MemoryStorage, call: int) -> None:
    storage.faults.fail_at_call = storage.faults.calls + call
    with pytest.raises(StorageFailed):
        await write_snapshot(storage, HEADER, ["a"])
    assert storage.names("snapshots") == []


async def test_pruning_keeps_the_newest_and_the_log_their_oldest_needs(storage: MemoryStorage) -> None:
    segments = [f"log/{sequence:010d}-{sequence * 10:020d}.seg" for sequence in range(1, 7)]
    for name in segments:
        storage.create(name)
    for lsn, sequence in ((10, 1), (30, 3), (40, 4), (60, 6)):
        await write_snapshot(storage, SnapshotHeader(1, lsn, 1, 1, b"x" * 16, LogPosition(lsn, 0, sequence, 64)), [])
    assert prune(storage, 3) == (4, 3)
    assert storage.names("log") == segments[2:]
    assert storage.names("snapshots") == [snapshot_name(lsn) for lsn in (30, 40, 60)]
