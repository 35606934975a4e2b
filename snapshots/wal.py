"""The format of the log, version 1, told so that anyone could implement it. No I/O here: bytes in, bytes out.

The log is a row of segment files in the folder `log`, named `SEQUENCE-FIRSTLSN.seg` (10 and 20 decimal
digits). All integers are unsigned and big-endian; every checksum is CRC32C (Castagnoli). A record's LSN is its
place in the row of all records ever written, starting at 1.

A segment begins with a header of 64 bytes, and is followed by frames without gaps:

    8  magic  b"STANLOG\\n"          8  epoch of the process that made the segment
    4  format version (1)            4  chain value to continue from
    8  sequence, starting at 1      16  id of the log, the same in every segment
    8  LSN of the first record       4  zero         4  CRC32C of the 60 bytes before

A frame is one commit, a header of 44 bytes and a payload of at most 1 MiB:

    4  magic  b"\\xc1SF1"            8  durable LSN: what the writer knew to be on disk
    8  epoch                         4  chain value
    8  LSN of the first record       4  CRC32C of the 40 bytes before
    4  number of records
    4  length of the payload

The chain value is the CRC32C of the frame's first 36 bytes and its payload, continued from the chain value of
the frame before (of the first frame: from the segment header; of the first segment: from the CRC32C of the log
id). So a lost, repeated, swapped or stale frame is found as surely as a flipped bit. The header has a checksum
of its own so that a garbage length is recognised before it is believed.

The payload is one msgpack array of records, each `[kind, version, *fields]`. A frame of no records has an
empty payload; it only states the durable LSN once the log has been idle, and its first LSN is the next one to
come. Byte 0xC1 opens the magic because neither msgpack nor UTF-8 ever use it, so that no text a visitor sends
can look like a frame.

The last segment may go on with reserved zeros after its last frame; every other one ends with its last frame.
Within a log, epochs and durable LSNs never fall.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import msgpack

from engine.errors import Damaged
from engine.records import Record, decode, encode

SEGMENT_MAGIC = b"STANLOG\n"
FRAME_MAGIC = b"\xc1SF1"
FORMAT_VERSION = 1
PAYLOAD_MAX_BYTES = 1 << 20
FRAME_MAX_RECORDS = 4096
"""Not a limit of the format: packing more at once would hold the GIL for longer than a millisecond or two."""

RESTARTS_PER_TERM = 1 << 20
"""An epoch is `term * RESTARTS_PER_TERM + restarts`; the first one ever is that of term 1."""

_SEGMENT = struct.Struct(">8sIQQQI16s4x")
_FRAME = struct.Struct(">4sQQIIQ")
_FRAME_SUMS = struct.Struct(">II")
_SUM = struct.Struct(">I")

SEGMENT_HEADER_BYTES = _SEGMENT.size + _SUM.size
FRAME_HEADER_BYTES = _FRAME.size + _FRAME_SUMS.size

LOG_FOLDER = "log"
SEGMENT_SUFFIX = ".seg"
RESERVED_SUFFIX = ".reserved"

assert google_crc32c.implementation == "c", "google_crc32c must be the C implementation: Python's is 1,000 times slower"


def extend_crc(crc: int, data: bytes) -> int:
    """Return the CRC32C of what `crc` covered followed by `data`; about 10 GB/s."""
    return int(google_crc32c.extend(crc, data))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first 64 bytes of a segment say."""

    version: int
    sequence: int
    first_lsn: int
    epoch: int
    chain: int
    log_id: bytes


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What the first 44 bytes of a frame say."""

    epoch: int
    first_lsn: int
    count: int
    length: int
    durable_lsn: int
    chain: int

    @property
    def last_lsn(self) -> int:
        """The LSN of the last record; of an empty frame, the one before its first."""
        return self.first_lsn + self.count - 1


def segment_name(sequence: int, first_lsn: int) -> str:
    """Return the file name of a segment; names sort as their sequence does."""
    return f"{LOG_FOLDER}/{sequence:010d}-{first_lsn:020d}{SEGMENT_SUFFIX}"


def reserved_name(sequence: int) -> str:
    """The name under which the space of a segment to come is held."""
    return f"{LOG_FOLDER}/{sequence:010d}{RESERVED_SUFFIX}"


def sequence_of(name: str) -> int:
    """Return the sequence in the name of a segment or a reservation; raises Damaged for any other name."""
    digits = name.removeprefix(f"{LOG_FOLDER}/")[:10]
    if not (digits.isascii() and digits.isdigit()):
        raise Damaged(f"{name} is not a name of the log; move it out of the folder if it is not Stanchion's")
    return int(digits)


def first_chain(log_id: bytes) -> int:
    """Return the chain value the first segment of a log continues from."""
    return extend_crc(0, log_id)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the bytes a segment begins with."""
    head = _SEGMENT.pack(
        SEGMENT_MAGIC,
        header.version,
        header.sequence,
        header.first_lsn,
        header.epoch,
        header.chain,
        header.log_id,
    )
    return head + _SUM.pack(extend_crc(0, head))


def decode_segment_header(data: bytes) -> SegmentHeader | str:
    """Return the header, of whatever version, or what is wrong with its bytes."""
    if len(data) < SEGMENT_HEADER_BYTES:
        return "the segment header is cut short"
    head, stored = data[: _SEGMENT.size], _SUM.unpack_from(data, _SEGMENT.size)[0]
    if extend_crc(0, head) != stored:
        return "the segment header fails its checksum"
    magic, *fields = _SEGMENT.unpack(head)
    if magic != SEGMENT_MAGIC:
        return "the file is not a segment of a Stanchion log"
    return SegmentHeader(*fields)


def encode_frame(header: FrameHeader, payload: bytes, previous_chain: int) -> tuple[bytes, int]:
    """Return the bytes of a frame and its chain value; the header's own `chain` and `length` are not read."""
    head = _FRAME.pack(FRAME_MAGIC, header.epoch, header.first_lsn, header.count, len(payload), header.durable_lsn)
    chain = extend_crc(extend_crc(previous_chain, head), payload)
    head += _SUM.pack(chain)
    return head + _SUM.pack(extend_crc(0, head)) + payload, chain


def decode_frame_header(data: bytes, offset: int = 0) -> FrameHeader | str:
    """Return the frame header at `offset`, or what is wrong with it."""
    head = data[offset : offset + FRAME_HEADER_BYTES]
    if len(head) < FRAME_HEADER_BYTES:
        return "a frame header is cut short"
    magic, epoch, first_lsn, count, length, durable_lsn = _FRAME.unpack_from(head)
    if magic != FRAME_MAGIC:
        return "there are bytes that are not a frame"
    chain, stored = _FRAME_SUMS.unpack_from(head, _FRAME.size)
    if extend_crc(0, head[: _FRAME.size + _SUM.size]) != stored:
        return "a frame header fails its checksum"
    if length > PAYLOAD_MAX_BYTES:
        return f"a frame claims {length} bytes of payload where {PAYLOAD_MAX_BYTES} are allowed"
    return FrameHeader(epoch, first_lsn, count, length, durable_lsn, chain)


def chain_of(frame: bytes, payload: bytes, previous_chain: int) -> int:
    """Return the chain value that a frame header followed by `payload` must carry."""
    return extend_crc(extend_crc(previous_chain, frame[: _FRAME.size]), payload)


def pack_records(records: Sequence[Record], limit_bytes: int) -> list[tuple[int, bytes]]:
    """Return the payloads that hold `records` in order, each as (number of records, bytes <= limit_bytes).

    O(bytes), a little more where halves have to be packed again. Raises ValueError for a single record above the limit.
    """
    if len(records) <= FRAME_MAX_RECORDS:
        payload = msgpack.packb([encode(record) for record in records], unicode_errors="surrogatepass")
        if len(payload) <= limit_bytes:
            return [(len(records), payload)]
        if len(records) == 1:
            raise ValueError(f"a record of {len(payload)} bytes does not fit a frame of {limit_bytes}")
    middle = len(records) // 2
    return pack_records(records[:middle], limit_bytes) + pack_records(records[middle:], limit_bytes)


def unpack_records(payload: bytes, count: int) -> list[Record]:
    """Return the records of a payload; raises Damaged for anything that is not `count` known records."""
    if not payload and count == 0:
        return []
    try:
        arrays = msgpack.unpackb(payload, use_list=False, unicode_errors="surrogatepass")
    except (ValueError, OverflowError, msgpack.UnpackException) as error:
        raise Damaged(f"the payload is not msgpack: {error}") from error
    if not isinstance(arrays, tuple) or len(arrays) != count:
        raise Damaged(f"the payload does not hold the {count} records its frame states")
    return [decode(array) for array in arrays]
