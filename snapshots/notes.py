"""Two small files in the log's folder that say what the folder is going through.

`log/incomplete` is there while the folder is being filled or emptied as a whole, and holds a sentence about it for
people. A folder with it is refused by everything but who can finish the work.

`log/mirrored` is kept by a standby, which writes many frames with one flush. It says up to where the segment being
written is known to be on disk, in two slots of 512 bytes that are written in turn, so that one of them is whole
whenever a crash comes. All integers are unsigned and big-endian:

    8  magic  b"STANMIR\\n"          8  sequence of the segment
    8  number, the higher counts     8  offset in it
                                     4  CRC32C of the 32 bytes before
"""

import struct
import threading

from snapshots.segments import LogPosition
from snapshots.storage import Storage, StorageFile
from snapshots.wal import LOG_FOLDER, extend_crc

INCOMPLETE_NAME = f"{LOG_FOLDER}/incomplete"
"""Marks a folder into which a backup or a restore is being copied, or which is being emptied."""

NEW_INCOMPLETE_NAME = INCOMPLETE_NAME + ".new"
MIRRORED_NAME = f"{LOG_FOLDER}/mirrored"
COPYING = "a copy into this folder was not finished; empty it and copy again"
INCOMPLETE_MAX_BYTES = 1000

MIRRORED_MAGIC = b"STANMIR\n"
SLOT_BYTES = 512
_SLOT = struct.Struct(">8sQQQ")
_SUM = struct.Struct(">I")


def why_incomplete(storage: Storage) -> str | None:
    """Return what is being done to the folder as a whole, None where nothing is."""
    if INCOMPLETE_NAME not in storage.names(LOG_FOLDER):
        return None
    return storage.read(INCOMPLETE_NAME, 0, INCOMPLETE_MAX_BYTES).decode(errors="replace") or COPYING


def mark_incomplete(storage: Storage, why: str) -> None:
    """Say durably what is begun with the folder."""
    file = storage.create(NEW_INCOMPLETE_NAME)
    file.write(0, why.encode())
    file.fsync()
    file.close()
    storage.rename(NEW_INCOMPLETE_NAME, INCOMPLETE_NAME)
    storage.sync_directory(LOG_FOLDER)


def mark_complete(storage: Storage) -> None:
    """Say durably that it is done."""
    storage.unlink(INCOMPLETE_NAME)
    storage.sync_directory(LOG_FOLDER)


class FlushedNote:
    """Writes `log/mirrored`; may be used from several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._file: StorageFile | None = None
        self._number = 0
        self._place = (0, 0)

    def begin(self, position: LogPosition) -> None:
        """Begin anew: everything up to `position` is on disk, and nothing is being written behind it."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._number, self._place = 0, (position.sequence, position.offset)
            self._file = self._storage.create(MIRRORED_NAME)
            self._file.write(0, self._slot())
            self._file.fsync()
            self._storage.sync_directory(LOG_FOLDER)

    def move(self, position: LogPosition) -> None:
        """Say that everything up to `position` is on disk; returns when that is durable.

        Does nothing before `begin` and after `close`.
        """
        with self._lock:
            place = (position.sequence, position.offset)
            if self._file is None or place <= self._place:
                return
            self._number, self._place = self._number + 1, place
            self._file.write(self._number % 2 * SLOT_BYTES, self._slot())
            self._file.fdatasync()

    def close(self) -> None:
        """Write nothing any more."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _slot(self) -> bytes:
        head = _SLOT.pack(MIRRORED_MAGIC, self._number, *self._place)
        return head + _SUM.pack(extend_crc(0, head))


def read_note(storage: Storage) -> tuple[int, int] | None:
    """Return the sequence and the offset up to which a mirrored log is known to be on disk; None without a note."""
    if MIRRORED_NAME not in storage.names(LOG_FOLDER):
        return None
    data = storage.read(MIRRORED_NAME, 0, 2 * SLOT_BYTES)
    slots = [_read_slot(data[at : at + _SLOT.size + _SUM.size]) for at in (0, SLOT_BYTES)]
    newest = max((slot for slot in slots if slot is not None), default=None)
    return None if newest is None else newest[1:]


def _read_slot(data: bytes) -> tuple[int, int, int] | None:
    if len(data) < _SLOT.size + _SUM.size or extend_crc(0, data[: _SLOT.size]) != _SUM.unpack_from(data, _SLOT.size)[0]:
        return None
    magic, number, sequence, offset = _SLOT.unpack_from(data)
    return (number, sequence, offset) if magic == MIRRORED_MAGIC else None
