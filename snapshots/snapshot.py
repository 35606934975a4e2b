"""The format of a snapshot, version 1, and its writing, verifying and reading.

A snapshot is the state after one LSN, in the file `snapshots/LSN.snap` (20 decimal digits). All integers are
unsigned and big-endian, every checksum is CRC32C. It begins with a header of 96 bytes:

    8  magic  b"STANSNP\\n"        16  id of the log it belongs to
    4  format version (1)           4  chain value at the position
    8  LSN                          8  position: LSN of the last record before it (<= LSN)
    8  epoch that wrote it          8  position: sequence of the segment
    8  event time, milliseconds     8  position: offset in the segment
   12  zero                         4  CRC32C of the 92 bytes before

The position is the place between two frames of the log behind which every record after the snapshot stands:
the log is read from there, and nothing before it is needed. Then come the parts, each a msgpack value whose
meaning is its writer's affair:

    4  tag b"PART"     4  length     4  CRC32C of the payload     the payload

and at last a trailer of 44 bytes, after which nothing follows:

    4  tag b"DONE"     4  number of parts     32  BLAKE2b-256 of all bytes before the trailer
    4  CRC32C of the 40 bytes before

Writing: parts are packed one by one in a thread and written in slices by aiofiles, to a temporary name, then
fsync, read back from the disk and verified, renamed, and the folder is flushed. Only what has passed all that
carries a snapshot's name, and only then is anything older pruned.
"""

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import msgpack

from engine.errors import Damaged, StorageFailed
from snapshots.segments import LogPosition
from snapshots.storage import Storage
from snapshots.wal import FORMAT_VERSION, extend_crc

SNAPSHOT_FOLDER = "snapshots"
SNAPSHOT_SUFFIX = ".snap"
TEMPORARY_SUFFIX = ".writing"
SNAPSHOT_MAGIC = b"STANSNP\n"
PART_TAG = b"PART"
DONE_TAG = b"DONE"
PART_MAX_BYTES = 16 << 20
SLICE_BYTES = 256 << 10

_HEADER = struct.Struct(">8sIQQQ16sIQQQ12x")
_PART = struct.Struct(">4sII")
_TRAILER = struct.Struct(">4sI32s")
_SUM = struct.Struct(">I")
HEADER_BYTES = _HEADER.size + _SUM.size
PART_HEADER_BYTES = _PART.size
TRAILER_BYTES = _TRAILER.size + _SUM.size


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What the first 96 bytes of a snapshot say."""

    version: int
    lsn: int
    epoch: int
    at_ms: int
    log_id: bytes
    position: LogPosition


@dataclass(frozen=True, slots=True)
class SnapshotFlaw:
    """Why a file is not a snapshot to start from; `foreign` where it is whole but not ours to read."""

    name: str
    offset: int
    problem: str
    foreign: bool = False


def snapshot_name(lsn: int) -> str:
    """Return the file name of the snapshot at an LSN; names sort as their LSNs do."""
    return f"{SNAPSHOT_FOLDER}/{lsn:020d}{SNAPSHOT_SUFFIX}"


def encode_snapshot_header(header: SnapshotHeader) -> bytes:
    """Return the bytes a snapshot file begins with."""
    place = header.position
    head = _HEADER.pack(
        SNAPSHOT_MAGIC, header.version, header.lsn, header.epoch, header.at_ms, header.log_id,
        place.chain, place.lsn, place.sequence, place.offset,
    )  # fmt: skip
    return head + _SUM.pack(extend_crc(0, head))


def decode_snapshot_header(data: bytes) -> SnapshotHeader | str:
    """Return the header, of whatever version, or what is wrong with its bytes."""
    if len(data) < HEADER_BYTES:
        return "the snapshot header is cut short"
    if extend_crc(0, data[: _HEADER.size]) != _SUM.unpack_from(data, _HEADER.size)[0]:
        return "the snapshot header fails its checksum"
    magic, version, lsn, epoch, at_ms, log_id, chain, at_lsn, sequence, offset = _HEADER.unpack_from(data)
    if magic != SNAPSHOT_MAGIC:
        return "the file is not a Stanchion snapshot"
    return SnapshotHeader(version, lsn, epoch, at_ms, log_id, LogPosition(at_lsn, chain, sequence, offset))


def pack_part(part: object) -> bytes:
    """Return a part as it stands in the file; holds the GIL for about 1 ms per 5,000 small rows."""
    payload = msgpack.packb(part, unicode_errors="surrogatepass")
    if len(payload) > PART_MAX_BYTES:
        raise ValueError(f"a part of {len(payload)} bytes is above the limit of {PART_MAX_BYTES}")
    return _PART.pack(PART_TAG, len(payload), extend_crc(0, payload)) + bytes(payload)


def encode_trailer(part_count: int, digest: bytes) -> bytes:
    """Return the bytes a snapshot file ends with."""
    head = _TRAILER.pack(DONE_TAG, part_count, digest)
    return head + _SUM.pack(extend_crc(0, head))


class _Slices:
    """Packs parts one by one into slices of about SLICE_BYTES, with the digest running; used from one thread."""

    def __init__(self, header: SnapshotHeader, parts: Iterable[object]) -> None:
        self._parts = iter(parts)
        self._head = encode_snapshot_header(header)
        self._digest = hashlib.blake2b(digest_size=32)
        self._part_count = 0
        self._done = False

    def next_slice(self) -> bytes:
        """Return the next bytes of the file, empty after the last; runs in a worker thread."""
        if self._done:
            return b""
        chunks, size_bytes = [self._head], len(self._head)
        self._head = b""
        while size_bytes < SLICE_BYTES:
            part = next(self._parts, self)
            if part is self:
                self._done = True
                break
            chunks.append(pack_part(part))
            size_bytes += len(chunks[-1])
            self._part_count += 1
        body = b"".join(chunks)
        self._digest.update(body)
        return body + encode_trailer(self._part_count, self._digest.digest()) if self._done else body


async def write_snapshot(
    storage: Storage,
    header: SnapshotHeader,
    parts: Iterable[object],
    naming: AbstractContextManager[None] = nullcontext(),  # noqa: B008, RUF100
) -> int:
    """Write, verify and name a snapshot; return its size in bytes.

    `parts` is consumed lazily in a worker thread, one part at a time; `naming` is entered while the snapshot gets its
    name, and may raise. Raises StorageFailed, or whatever `parts` raises, having tried to remove the temporary file:
    on a full disk the log needs the space.
    """
    name = snapshot_name(header.lsn)
    temporary = name + TEMPORARY_SUFFIX
    try:
        size_bytes = await _write_temporary(storage, temporary, _Slices(header, parts))
        await asyncio.to_thread(_publish, storage, temporary, name, naming)
    except BaseException:
        with suppress(StorageFailed):
            storage.unlink(temporary)
        raise
    return size_bytes


async def receive_snapshot(storage: Storage, slices: AsyncIterator[bytes]) -> SnapshotHeader:
    """Write the bytes of a snapshot made elsewhere, verify and name it; raises Damaged where it does not verify."""
    first = b""
    while len(first) < HEADER_BYTES:
        first += await anext(slices, b"") or _too_short()
    header = decode_snapshot_header(first)
    if isinstance(header, str):
        raise Damaged(f"what was received is no snapshot: {header}")
    name = snapshot_name(header.lsn)
    temporary = name + TEMPORARY_SUFFIX
    file = await storage.create_slices(temporary)
    try:
        try:
            await file.write(first)
            async for body in slices:
                await file.write(body)
            await file.fsync()
        finally:
            await file.close()
        verified = await asyncio.to_thread(_verify_again, storage, temporary)
        if isinstance(verified, SnapshotFlaw):
            raise Damaged(f"the snapshot received does not verify: {verified.problem} at offset {verified.offset}")
        await asyncio.to_thread(_name, storage, temporary, name)
    except BaseException:
        with suppress(StorageFailed):
            storage.unlink(temporary)
        raise
    return header


def _too_short() -> bytes:
    raise Damaged("what was received is no snapshot: it ends before its header does")


async def _write_temporary(storage: Storage, temporary: str, slices: "_Slices") -> int:
    size_bytes = 0
    file = await storage.create_slices(temporary)
    try:
        while body := await asyncio.to_thread(slices.next_slice):
            await file.write(body)
            size_bytes += len(body)
        await file.fsync()
    finally:
        await file.close()
    return size_bytes


def _publish(storage: Storage, temporary: str, name: str, naming: AbstractContextManager[None]) -> None:
    verified = _verify_again(storage, temporary)
    if isinstance(verified, SnapshotFlaw):
        raise StorageFailed(f"the snapshot just written reads back damaged: {verified.problem} at {verified.offset}")
    with naming:
        _name(storage, temporary, name)


def _verify_again(storage: Storage, temporary: str) -> "SnapshotHeader | SnapshotFlaw":
    storage.drop_cache(temporary)
    return verify_snapshot(storage, temporary)


def _name(storage: Storage, temporary: str, name: str) -> None:
    storage.rename(temporary, name)
    storage.sync_directory(SNAPSHOT_FOLDER)


class _FlawFound(Exception):
    """Carries the first flaw out of the walk over a snapshot."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset = offset


def _payloads(storage: Storage, name: str) -> Iterator[bytes]:
    """Yield the payload of each part, checking everything on the way; raises _FlawFound."""
    offset, part_count = HEADER_BYTES, 0
    digest = hashlib.blake2b(storage.read(name, 0, HEADER_BYTES), digest_size=32)
    while (head := storage.read(name, offset, PART_HEADER_BYTES))[:4] == PART_TAG and len(head) == PART_HEADER_BYTES:
        _, length, crc = _PART.unpack(head)
        if length > PART_MAX_BYTES:
            raise _FlawFound(offset, f"a part claims {length} bytes")
        payload = storage.read(name, offset + PART_HEADER_BYTES, length)
        if len(payload) < length or extend_crc(0, payload) != crc:
            raise _FlawFound(offset, "a part fails its checksum")
        digest.update(head)
        digest.update(payload)
        yield payload
        offset += PART_HEADER_BYTES + length
        part_count += 1
    if storage.read(name, offset, TRAILER_BYTES + 1) != encode_trailer(part_count, digest.digest()):
        raise _FlawFound(offset, "the trailer is missing or contradicts the parts")


def verify_snapshot(storage: Storage, name: str) -> SnapshotHeader | SnapshotFlaw:
    """Read a whole snapshot and return its header, or the first flaw; holds one part at a time."""
    header = decode_snapshot_header(storage.read(name, 0, HEADER_BYTES))
    if isinstance(header, str):
        return SnapshotFlaw(name, 0, header)
    if header.version != FORMAT_VERSION:
        problem = f"it has format version {header.version}, this Stanchion reads version {FORMAT_VERSION}"
        return SnapshotFlaw(name, 0, problem, foreign=True)
    if not name.startswith(snapshot_name(header.lsn)):
        return SnapshotFlaw(name, 0, f"its header says LSN {header.lsn}, its name another")
    try:
        for _ in _payloads(storage, name):
            pass
    except _FlawFound as flaw:
        return SnapshotFlaw(name, flaw.offset, str(flaw))
    return header


def read_parts(storage: Storage, name: str) -> Iterator[object]:
    """Yield the parts of a snapshot in order, verifying again; raises Damaged."""
    try:
        for payload in _payloads(storage, name):
            yield msgpack.unpackb(payload, use_list=False, strict_map_key=False, unicode_errors="surrogatepass")
    except (_FlawFound, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise Damaged(f"{storage.place}/{name} cannot be read: {error}") from error
