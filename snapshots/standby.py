"""The follower's copy of log and snapshots."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.records import Record
from snapshots.journal import Journal
from snapshots.options import JournalOptions, JournalStats, SnapshotInfo
from snapshots.recovery import Found
from snapshots.segments import LogPosition
from snapshots.snapshot import SnapshotHeader
from snapshots.storage import Storage
from snapshots.wal import FrameHeader


@dataclass(frozen=True, slots=True)
class CutReport:
    """What was put aside: how many records, from where to where, into which files; `sentence` says it for people."""

    records: int
    first_lsn: int
    last_lsn: int
    files: tuple[str, ...]
    sentence: str


class StandbyLog:
    """The copy of a primary's log in one data folder; one process at a time has it open."""

    found: Found
    log_id: bytes
    position: LogPosition
    epoch: int
    durable_lsn: int

    @classmethod
    def open(cls, storage: Storage, options: JournalOptions) -> "StandbyLog":
        """Lock the folder, bring it in order and go on behind its last frame."""
        raise NotImplementedError

    def snapshot_parts(self) -> Iterator[object]:
        """Yield the parts of the snapshot to start from, in order; nothing where there is none."""
        raise NotImplementedError

    def replay(self) -> Iterator[tuple[int, Record]]:
        """Yield (LSN, record) for everything after the snapshot."""
        raise NotImplementedError

    async def append(self, pieces: Sequence[bytes]) -> list[tuple[FrameHeader, bytes]]:
        """Verify, write and flush pieces; return the frames among them."""
        raise NotImplementedError

    def best_cut(self, starts: Sequence[LogPosition]) -> LogPosition | None:
        """Return the newest of a primary's segment starts that is a place in this log; blocking."""
        raise NotImplementedError

    def cut(self, to: LogPosition, why: str) -> CutReport:
        """Put everything behind a place aside; blocking."""
        raise NotImplementedError

    def start_over(self) -> CutReport:
        """Put everything aside; blocking."""
        raise NotImplementedError

    async def receive_snapshot(self, slices: AsyncIterator[bytes]) -> SnapshotHeader:
        """Take up a snapshot; its segment follows from the beginning."""
        raise NotImplementedError

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterable[object]) -> SnapshotInfo:
        """Write the state after `lsn`."""
        raise NotImplementedError

    def read_records(self, from_lsn: int, to_lsn: int | None = None) -> AsyncIterator[list[tuple[int, Record]]]:
        """Yield records in batches."""
        raise NotImplementedError

    def stats(self) -> JournalStats:
        """Return the figures of this moment."""
        raise NotImplementedError

    def promote(self, least_epoch: int, lost: str | None = None) -> Journal:
        """Make the next epoch durable and return the journal that goes on with it."""
        raise NotImplementedError

    async def close(self) -> None:
        """Seal the log and let the folder go."""
        raise NotImplementedError
