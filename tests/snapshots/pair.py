"""A primary and its standby, driven step by step, and the judgement of what either way of opening brings back."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

from engine.errors import Damaged
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage
from snapshots.notes import INCOMPLETE_NAME
from snapshots.segments import LogPosition
from snapshots.shipping import read_pieces, segment_starts
from snapshots.snapshot import HEADER_BYTES, SnapshotHeader, decode_snapshot_header
from snapshots.standby import CutReport, StandbyLog
from snapshots.storage import Storage
from snapshots.wal import first_chain
from tests.snapshots.scenario import SMALL, Life, state_of

OPTIONS = JournalOptions(**SMALL)


@dataclass(frozen=True)
class Held:
    """What a standby has acknowledged, and may not lose any more."""

    users: tuple[str, ...] = ()


def beginning(log_id: bytes) -> LogPosition:
    return LogPosition(0, first_chain(log_id), 0, 0)


def pieces_behind(primary: Journal, after: LogPosition) -> list[bytes]:
    """Return everything a primary has behind a position; of sequence 0, from the beginning."""
    place = after if after.sequence else beginning(primary.log_id)
    return [piece.data for piece in read_pieces(primary.storage, place, 1 << 30, primary.position)]


def users_of(log: StandbyLog) -> list[str]:
    """Return the user ids of all records a standby brings back after it was opened."""
    users: list[str] = [user_id for part in log.snapshot_parts() for user_id in part]  # type: ignore[attr-defined]
    assert len(users) == log.found.snapshot_lsn
    for lsn, record in log.replay():
        users.append(record.user_id)  # type: ignore[union-attr]
        assert len(users) == lsn, "the replay skips or repeats an LSN"
    assert len(users) == log.position.lsn, "the replay ends elsewhere than the log says"
    return users


def parts_of(users: list[str]) -> list[list[str]]:
    return [users[at : at + 40] for at in range(0, len(users), 40)]


async def slices_of(storage: Storage, name: str, length: int = 700) -> AsyncIterator[bytes]:
    for offset in range(0, storage.size_bytes(name), length):
        yield storage.read(name, offset, length)


@dataclass
class Standby:
    """A standby on a disk in memory, which notes in the trace what it has acknowledged."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    standby_class: Any = StandbyLog
    options: Any = OPTIONS
    log: Any = None

    def open(self) -> None:
        self.log = self.standby_class.open(self.storage, self.options)

    def hold(self, users: list[str]) -> None:
        self.storage.mark(Held(tuple(users)))

    async def follow(self, life: Life, *batches: int) -> None:
        """Append what the primary has, in batches of so many pieces and the rest at once."""
        pieces = pieces_behind(life.journal, self.log.position)
        for count in (*batches, len(pieces)):
            batch, pieces = pieces[:count], pieces[count:]
            if batch:
                await self.log.append(batch)
                self.hold(life.history[: self.log.position.lsn] if self.is_whole() else [])
        assert astuple(self.log.position) == astuple(life.journal.position)

    def is_whole(self) -> bool:
        return INCOMPLETE_NAME not in self.storage.names("log")

    async def snapshot(self, life: Life) -> None:
        lsn = self.log.position.lsn
        info = await self.log.snapshot(lsn, 1_000, parts_of(life.history[:lsn]))
        assert info.name in self.storage.names("snapshots")

    def cut(self, life: Life) -> CutReport:
        """Go back to where this log and a primary's are the same."""
        to = self.log.best_cut(segment_starts(life.journal.storage))
        assert to is not None
        self.hold(life.history[: to.lsn])
        report: CutReport = self.log.cut(to, "it was never there")
        return report

    async def receive(self, life: Life) -> None:
        """Take up the primary's newest snapshot and what is behind it."""
        self.hold([])
        name = life.journal.newest_snapshot()
        assert name is not None
        header = await self.log.receive_snapshot(slices_of(life.journal.storage, name))
        read = decode_snapshot_header(life.journal.storage.read(name, 0, HEADER_BYTES))
        assert isinstance(read, SnapshotHeader)
        assert astuple(header) == astuple(read)
        place = next(p for p in segment_starts(life.journal.storage) if p.sequence == header.position.sequence - 1)
        pieces = [piece.data for piece in read_pieces(life.journal.storage, place, 1 << 30, life.journal.position)]
        for count in (1, 3, len(pieces)):
            batch, pieces = pieces[:count], pieces[count:]
            if batch:
                await self.log.append(batch)
                self.hold(life.history[: self.log.position.lsn] if self.is_whole() else [])
        assert self.is_whole()

    async def promote(self, life: Life, generation: int) -> Life:
        """Lead from here on; returns the life that goes on."""
        journal = self.log.promote((self.log.epoch // (1 << 20) + 1) << 20)
        led = Life(self.storage, options=self.options, generation=generation)
        led.history, led.journal = life.history[: journal.durable_lsn], journal
        led.ever = {lsn: {user_id} for lsn, user_id in enumerate(led.history, 1)}
        await journal.start()
        return led


async def a_new_term(standby: Standby, life: Life, generation: int) -> Life:
    """Let a copy of a standby's folder lead, as the standby itself might have."""
    copied = Standby(MemoryStorage(standby.storage.image()))
    copied.open()
    return await copied.promote(life, generation)


def opened_both_ways(
    state: CrashState, standby_class: Any = StandbyLog, journal_class: Any = Journal, options: Any = OPTIONS
) -> Iterator[list[str]]:
    """Open what a crash left as a standby and as a primary; yield what either brings back."""
    log = standby_class.open(MemoryStorage(state.image), options)
    assert not log.found.alarms, f"a crash raises an alarm: {log.found.alarms}"
    yield users_of(log)
    try:
        journal = journal_class.open(MemoryStorage(state.image), options)
    except Damaged as error:
        assert INCOMPLETE_NAME in dict(state.image.files), f"a crash is taken for damage: {error}"
        assert "start it as a follower again" in str(error)
        return
    assert not journal.found.alarms, f"a crash raises an alarm: {journal.found.alarms}"
    yield state_of(journal)


def judge_standby(state: CrashState, histories: list[list[str]], **package: Any) -> None:
    """Hold what a crash left to what had been acknowledged, and to what any primary ever had."""
    held = state.promised.users if isinstance(state.promised, Held) else ()
    for users in opened_both_ways(state, **package):
        assert tuple(users[: len(held)]) == held, "an acknowledged record is lost or changed"
        assert any(users == history[: len(users)] for history in histories), "a record was invented"


async def a_primary(*counts: int) -> Life:
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(*counts)
    return life


async def a_standby(life: Life, standby_class: Any = StandbyLog, options: Any = OPTIONS) -> Standby:
    standby = Standby(MemoryStorage(), standby_class, options)
    standby.open()
    await standby.follow(life, 2)
    return standby


def content(storage: Storage, name: str) -> bytes:
    return storage.read(name, 0, storage.size_bytes(name))


def quarantined(storage: Storage) -> set[bytes]:
    return {content(storage, name) for name in storage.names("quarantine") if not name.endswith(".writing")}


async def a_divergence(standby_class: Any = StandbyLog, options: Any = OPTIONS) -> tuple[Standby, Life, Life]:
    """A standby that has gone on with the old primary, and a new one that has not."""
    old = await a_primary(3, 100, 20)
    standby = await a_standby(old, standby_class, options)
    await standby.snapshot(old)
    new = await a_new_term(standby, old, 50)
    await old.commit(5, 100, 2)
    await standby.follow(old, 1)
    await standby.snapshot(old)
    await new.commit(4, 90)
    return standby, old, new


async def lead_a_standbys_life(standby: Standby) -> list[list[str]]:
    """Batches, segments, snapshots, restarts, a cut, a fresh start, a promotion; returns every primary's history."""
    old = await a_primary(1, 3, 2)
    standby.open()
    await standby.follow(old, 1, 1)
    await old.commit(9, 8, 90, 7, 20)
    await standby.follow(old, 2)
    await standby.snapshot(old)
    await standby.log.close()
    standby.open()
    await old.commit(2, 12, 1, 25, 4, 9)
    await standby.follow(old)
    new = await a_new_term(standby, old, 50)
    await old.commit(9, 60, 7)
    await standby.follow(old)
    await standby.snapshot(old)
    await new.commit(10, 9, 30, 3)
    standby.cut(new)
    await standby.follow(new, 3)
    newest = await a_new_term(standby, new, 70)
    for count in (40, 60, 5):
        await newest.commit(count)
        await newest.snapshot()
    await newest.commit(2, 70)
    await standby.receive(newest)
    await newest.commit(2, 18, 3, 11, 1)
    await standby.follow(newest)
    own = await standby.promote(newest, 90)
    standby.hold(own.history)
    waiter = own.journal.when_durable(own.append(5))
    await waiter
    standby.hold(own.history)
    await own.close()
    return [old.history, new.history, newest.history, own.history]
