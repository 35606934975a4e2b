"""A follower's replica of the state: what it has applied, and what it holds but may not speak of yet."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from engine.backends.following import FollowingBackend, Primary
from engine.records import Record
from engine.venue import Venue
from snapshots.shipping import records_in
from snapshots.standby import StandbyLog
from snapshots.wal import FrameHeader

RECORDS_PER_TURN = 500


class LogLeftBehind(Exception):
    """This follower has applied what its new primary never had: its state has to be built anew."""


class StateDiffers(LogLeftBehind):
    """The digest in the log is not that of the state here: somebody's memory or code went wrong."""


class Replica:
    """A venue built from a log or a snapshot, and the records behind it in the order of the log.

    `applied_lsn` is what its backend answers from; `held_lsn` is the newest record it holds at all.
    """

    def __init__(self, primary: Primary, clock_ms: Callable[[], int], log: StandbyLog | None) -> None:
        self.venue = Venue()
        self._held: deque[tuple[int, Sequence[Record]]] = deque()
        self.held_lsn = 0
        if log is not None:
            self._build(log.snapshot_parts(), log.replay(), log.durable_lsn)
        self.backend = FollowingBackend(self.venue, primary, clock_ms, log)

    @property
    def applied_lsn(self) -> int:
        """The newest record applied."""
        return self.venue.outbox.lsn

    def load(self, parts: Iterable[object]) -> None:
        """Take up a snapshot; only into one that holds nothing yet."""
        self.venue.load(parts)
        self.held_lsn = self.applied_lsn

    def _build(self, parts: Iterable[object], records: Iterable[tuple[int, Record]], committed_lsn: int) -> None:
        snapshot = list(parts)
        if snapshot:
            self.venue.load(snapshot)
        self.held_lsn = self.applied_lsn
        for lsn, record in records:
            self.held_lsn = lsn
            if lsn <= committed_lsn:
                self.venue.apply(record)
                self.venue.outbox.drain()
            else:
                self._held.append((lsn, (record,)))

    def take(self, header: FrameHeader, data: bytes) -> None:
        """Hold the records of a frame; those that are in the state already (a snapshot's) are passed over."""
        if header.last_lsn <= self.held_lsn or not header.count:
            return
        records = records_in(data, header)[max(0, self.held_lsn + 1 - header.first_lsn) :]
        self._held.append((header.last_lsn, records))
        self.held_lsn = header.last_lsn

    def hold(self, records: Iterable[tuple[int, Record]]) -> None:
        """Hold records that were read back from the log; those that are held already are passed over."""
        for lsn, record in records:
            if lsn > self.held_lsn:
                self._held.append((lsn, (record,)))
                self.held_lsn = lsn

    async def apply(self, until_lsn: int, now_ms: int) -> None:
        """Apply what may be spoken of, letting others run in between."""
        batch: list[Record] = []
        while self._held and self._held[0][0] <= until_lsn:
            batch += self._held.popleft()[1]
            if len(batch) >= RECORDS_PER_TURN:
                self.backend.advance(batch, now_ms)
                batch = []
                await asyncio.sleep(0)
        self.backend.advance(batch, now_ms)

    def apply_everything(self) -> int:
        """Apply what is held: this process is about to speak for itself. Returns the event time to go on from."""
        held, self._held = self._held, deque()
        now_ms = self.backend.now_ms()
        self.backend.advance([record for _, records in held for record in records], now_ms)
        return now_ms
