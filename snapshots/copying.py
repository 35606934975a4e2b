"""Copying a part of a file, within a storage or from one to another."""

from snapshots.storage import Storage
from snapshots.wal import extend_crc

COPY_BYTES = 1 << 20


def copy_bytes(source: Storage, name: str, offset: int, length: int, target: Storage, target_name: str) -> None:
    """Copy `length` bytes over the beginning of a file that is there already (reserved), and flush it."""
    file = target.open_file(target_name)
    for at in range(0, length, COPY_BYTES):
        file.write(at, source.read(name, offset + at, min(COPY_BYTES, length - at)))
    file.fsync()
    file.close()


def crc_of(storage: Storage, name: str, offset: int, length: int) -> int:
    """Return the CRC32C of a part of a file."""
    crc = 0
    for at in range(0, length, COPY_BYTES):
        crc = extend_crc(crc, storage.read(name, offset + at, min(COPY_BYTES, length - at)))
    return crc
