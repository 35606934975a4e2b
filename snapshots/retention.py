"""What is kept: the newest snapshots, and the whole log since the oldest of them.

As long as there are fewer snapshots than are to be kept, nothing of the log is removed: it still reaches back
to LSN 1, so that the state can be rebuilt even if every snapshot is bad.
"""

from snapshots.snapshot import HEADER_BYTES, SnapshotHeader, decode_snapshot_header
from snapshots.storage import Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import LOG_FOLDER, sequence_of


def prune(storage: Storage, keep_snapshots: int) -> tuple[int, int]:
    """Remove what is no longer kept; return how many segments and snapshots are left.

    Segments go one by one, oldest first, each removal durable before the next, so that no crash leaves a hole.
    """
    snapshots = snapshot_names(storage)
    kept = snapshots[:keep_snapshots]
    segments = segment_names(storage)
    if len(kept) < keep_snapshots:
        return len(segments), len(kept)
    oldest = decode_snapshot_header(storage.read(kept[-1], 0, HEADER_BYTES))
    if not isinstance(oldest, SnapshotHeader):
        return len(segments), len(snapshots)
    for name in snapshots[keep_snapshots:]:
        storage.unlink(name)
    unneeded = [name for name in segments if sequence_of(name) < oldest.position.sequence]
    for name in unneeded:
        storage.unlink(name)
        storage.sync_directory(LOG_FOLDER)
    return len(segments) - len(unneeded), len(kept)
