"""Taking history out of a standby's folder: what the primary never had, or everything.

Every step can be cut short by a crash and taken again. What is removed was copied aside before and the copy
flushed; a segment goes only when the one after it is durably gone, so what is left is a whole log at every moment.
Where the folder is emptied it cannot be whole in between, so that is announced in it first (`notes`), and whoever
opens it next goes on with it.
"""

from engine.errors import StorageFailed
from snapshots.notes import MIRRORED_NAME, FlushedNote, mark_complete, mark_incomplete, why_incomplete
from snapshots.quarantine import copy_aside
from snapshots.segments import LogPosition
from snapshots.snapshot import (
    HEADER_BYTES,
    SNAPSHOT_FOLDER,
    TEMPORARY_SUFFIX,
    SnapshotHeader,
    decode_snapshot_header,
)
from snapshots.storage import Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import LOG_FOLDER, RESERVED_SUFFIX, SEGMENT_SUFFIX, sequence_of

EMPTYING = "everything in this folder was being put aside into its quarantine folder; start it as a follower again"
RECEIVING = (
    "a snapshot and the log behind it were being received from a primary, and it is not all there yet; "
    "start it as a follower again"
)


def fits(storage: Storage, snapshot: str, to: LogPosition) -> bool:
    """Whether a snapshot is of nothing behind a place in the log; only its header is read."""
    header = decode_snapshot_header(storage.read(snapshot, 0, HEADER_BYTES))
    if not isinstance(header, SnapshotHeader) or header.lsn > to.lsn:
        return False
    return (header.position.sequence, header.position.offset) <= (to.sequence, to.offset)


def cut_behind(storage: Storage, to: LogPosition) -> list[str]:
    """Put aside everything behind a place in a sealed log, snapshots too; return the names of the copies.

    The recovery that has to follow makes the end of the log durable; until then a crash brings back the old one.
    """
    copies: list[str] = []
    note = FlushedNote(storage)
    note.begin(to)
    note.close()
    for name in snapshot_names(storage):
        if not fits(storage, name, to):
            _take_out(storage, name, copies)
    storage.sync_directory(SNAPSHOT_FOLDER)
    for name in reversed(segment_names(storage)):
        if sequence_of(name) > to.sequence:
            _take_out(storage, name, copies)
            storage.sync_directory(LOG_FOLDER)
        elif sequence_of(name) == to.sequence:
            _copy(storage, name, to.offset, copies)
            file = storage.open_file(name)
            file.truncate(to.offset)
            file.close()
    return copies


def empty(storage: Storage) -> list[str]:
    """Put aside every snapshot and the whole, sealed log; return the names of the copies."""
    copies: list[str] = []
    mark_incomplete(storage, EMPTYING)
    for name in snapshot_names(storage) + segment_names(storage):
        _take_out(storage, name, copies)
    _finish(storage)
    return copies


def finish_interrupted(storage: Storage) -> list[str]:
    """Finish what a crash has interrupted: emptying, or receiving, which has to begin again from nothing.

    What had been received is removed: nobody was told that it is here, and its primary has it. Returns the names of
    the copies made.
    """
    why = why_incomplete(storage)
    if why == EMPTYING:
        return empty(storage)
    if why == RECEIVING:
        for name in snapshot_names(storage) + segment_names(storage):
            storage.unlink(name)
        _finish(storage)
    return []


def _finish(storage: Storage) -> None:
    """Remove what is left in a folder that was emptied, and say that it is done."""
    for folder, endings in (
        (LOG_FOLDER, (RESERVED_SUFFIX, SEGMENT_SUFFIX, MIRRORED_NAME)),
        (SNAPSHOT_FOLDER, (TEMPORARY_SUFFIX,)),
    ):
        for name in storage.names(folder):
            if name.endswith(endings):
                storage.unlink(name)
        storage.sync_directory(folder)
    mark_complete(storage)


def _take_out(storage: Storage, name: str, copies: list[str]) -> None:
    _copy(storage, name, 0, copies)
    storage.unlink(name)


def _copy(storage: Storage, name: str, offset: int, copies: list[str]) -> None:
    length = storage.size_bytes(name) - offset
    if length <= 0:
        return
    copy = copy_aside(storage, name, offset, length)
    if copy is None:
        raise StorageFailed(f"no space in {storage.place} to keep a copy of what is cut: make room first")
    copies.append(copy)
