"""What a journal is told and what it tells: its settings, its figures, and the report of a snapshot."""

from dataclasses import dataclass

from engine.errors import BadConfiguration
from snapshots.commit import CommitThread

SEGMENT_MIN_BYTES = 4096
SNAPSHOTS_MIN = 3


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """The settings of a journal, checked once, here.

    `segment_mib` may be a fraction, for tests. At most `queue_max_records` records and about `queue_max_bytes`
    wait for the disk. `accept_loss` cuts a damaged log where it is damaged instead of refusing it. No epoch below
    `least_epoch` is used: a promotion passes the first one of its term. `commit_thread` is who writes the log.
    """

    segment_mib: float = 64
    queue_max_records: int = 50_000
    queue_max_bytes: int = 32 << 20
    idle_frame_ms: int = 50
    keep_snapshots: int = 3
    reserve_retry_s: float = 1.0
    accept_loss: bool = False
    least_epoch: int = 0
    commit_thread: type[CommitThread] = CommitThread

    def __post_init__(self) -> None:
        if self.segment_bytes < SEGMENT_MIN_BYTES:
            raise BadConfiguration("segment_mib must be at least 1/256")
        if self.keep_snapshots < SNAPSHOTS_MIN:
            raise BadConfiguration("keep_snapshots must be at least 3: the log is pruned up to the oldest kept")
        if min(self.queue_max_records, self.queue_max_bytes, self.idle_frame_ms) < 1:
            raise BadConfiguration("queue_max_records, queue_max_bytes and idle_frame_ms must be at least 1")

    @property
    def segment_bytes(self) -> int:
        return int(self.segment_mib * (1 << 20))


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot that was written, verified and named."""

    lsn: int
    size_bytes: int
    seconds: float
    name: str


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Figures for metrics and status pages; sums count from the start of this process."""

    last_lsn: int
    durable_lsn: int
    epoch: int
    queued_records: int
    queued_bytes: int
    commits: int
    committed_records: int
    commit_seconds_last: float
    commit_seconds_sum: float
    written_bytes: int
    segments: int
    snapshots: int
    snapshot_last: SnapshotInfo | None
    snapshot_failures: int
    storage_full: bool
    failed: bool
