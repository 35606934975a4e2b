"""Keeping a copy of whatever is cut off or taken out of a folder: no evidence is ever lost.

A copy's name is made of where it was and of its content, and it gets that name only once it is whole and flushed.
So copying can be killed at any point and done again, with the same result.
"""

from snapshots.copying import copy_bytes, crc_of
from snapshots.scan import is_zero
from snapshots.snapshot import TEMPORARY_SUFFIX
from snapshots.storage import Storage

QUARANTINE_FOLDER = "quarantine"


def copy_aside(storage: Storage, name: str, offset: int, length: int) -> str | None:
    """Copy bytes into the quarantine folder unless they are there; return the copy's name, None without space."""
    target = f"{QUARANTINE_FOLDER}/{name.split('/')[-1]}.at-{offset}-{crc_of(storage, name, offset, length):08x}"
    if target not in storage.names(QUARANTINE_FOLDER):
        if not storage.reserve(target + TEMPORARY_SUFFIX, length):
            return None
        copy_bytes(storage, name, offset, length, storage, target + TEMPORARY_SUFFIX)
        storage.rename(target + TEMPORARY_SUFFIX, target)
    storage.sync_directory(QUARANTINE_FOLDER)
    return target


def length_without_zeros(storage: Storage, name: str, offset: int) -> int:
    """Return how many bytes stand from `offset` on, the reserved zeros at the end not counted."""
    if is_zero(storage, name, offset):
        return 0
    return len(storage.read(name, offset, storage.size_bytes(name) - offset).rstrip(b"\0"))
