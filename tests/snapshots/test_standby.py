"""A standby's log: a copy byte for byte, cut or emptied without losing evidence, and leading in the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import Damaged, Locked, Refused, StorageFailed
from snapshots.cutting import RECEIVING
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.notes import why_incomplete
from snapshots.segments import LogPosition
from snapshots.shipping import is_in_log, read_pieces, segment_starts
from snapshots.snapshot import snapshot_name
from snapshots.standby import StandbyLog
from snapshots.storage import DiskStorage, Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import RESTARTS_PER_TERM, SEGMENT_MAGIC, sequence_of
from tests.snapshots.pair import (
    OPTIONS,
    Standby,
    a_divergence,
    a_primary,
    a_standby,
    beginning,
    content,
    parts_of,
    pieces_behind,
    quarantined,
    slices_of,
    users_of,
)
from tests.snapshots.scenario import Life, joined, state_of


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else DiskStorage(tmp_path / "standby")


# The copy


async def test_a_standby_has_the_same_segments_byte_for_byte(storage: Storage) -> None:
    life = await a_primary(1, 3, 14, 110, 120)
    log = StandbyLog.open(storage, OPTIONS)
    assert (log.position.sequence, log.log_id, log.epoch) == (0, b"", 0)
    pieces = pieces_behind(life.journal, log.position)
    frames = [frame for at in range(0, len(pieces), 3) for frame in await log.append(pieces[at : at + 3])]
    assert log.position == life.journal.position
    assert (log.log_id, log.epoch) == (life.journal.log_id, life.journal.epoch)
    assert log.durable_lsn == life.journal.durable_lsn - frames[-1][0].count
    assert [data for _, data in frames] == [piece for piece in pieces if not piece.startswith(b"STANLOG")]
    await life.close()
    await log.append(pieces_behind(life.journal, log.position))
    await log.close()
    assert segment_names(storage) == segment_names(life.storage)
    assert len(segment_names(storage)) > 2
    for name in segment_names(storage):
        assert content(storage, name) == content(life.storage, name)


async def test_a_batch_of_many_frames_is_one_write_and_one_flush() -> None:
    life = await a_primary(1, 1, 1, 1, 1)
    standby = Standby()
    standby.open()
    pieces = pieces_behind(life.journal, standby.log.position)
    await standby.log.append(pieces[:2])
    since = len(standby.storage.trace)
    await standby.log.append(pieces[2:])
    assert [entry[0] for entry in standby.storage.trace[since:] if isinstance(entry, tuple)] == ["write", "fdatasync"]


async def test_opening_goes_on_in_the_same_segment(storage: Storage) -> None:
    life = await a_primary(1, 3)
    log = StandbyLog.open(storage, OPTIONS)
    await log.append(pieces_behind(life.journal, log.position))
    await log.close()
    for count in (1, 5, 200):
        await life.commit(count)
        log = StandbyLog.open(storage, OPTIONS)
        assert users_of(log) == life.history[: log.position.lsn]
        await log.append(pieces_behind(life.journal, log.position))
        assert log.position == life.journal.position
        await log.close()
    log = StandbyLog.open(storage, OPTIONS)
    assert users_of(log) == life.history
    assert segment_names(storage) == segment_names(life.storage)


async def test_a_primary_with_larger_segments_is_followed(storage: Storage) -> None:
    life = Life(MemoryStorage(), options=JournalOptions(segment_mib=1 / 16, idle_frame_ms=3_600_000))
    await life.open()
    await life.commit(*[40] * 30)
    log = StandbyLog.open(storage, OPTIONS)
    pieces = pieces_behind(life.journal, log.position)
    assert log.position.sequence == 0
    for at in range(0, len(pieces), 4):
        await log.append(pieces[at : at + 4])
    await log.close()
    assert users_of(StandbyLog.open(storage, OPTIONS)) == life.history


async def test_one_process_at_a_time_has_the_folder(storage: Storage) -> None:
    log = StandbyLog.open(storage, OPTIONS)
    again = storage if isinstance(storage, MemoryStorage) else DiskStorage(Path(storage.place))
    with pytest.raises(Locked):
        StandbyLog.open(again, OPTIONS)
    await log.close()
    await log.close()
    await StandbyLog.open(storage, OPTIONS).close()


async def test_a_flipped_bit_in_any_piece_is_refused_and_nothing_is_written() -> None:
    life = await a_primary(1, 3, 14, 110)
    standby = Standby()
    standby.open()
    pieces = pieces_behind(life.journal, standby.log.position)
    await standby.log.append(pieces[:2])
    rest = pieces[2:]
    before, position = standby.storage.image(), standby.log.position
    for number, piece in enumerate(rest):
        for at in range(0, len(piece), max(1, len(piece) // 150)):
            bad = piece[:at] + bytes([piece[at] ^ 1 << at % 8]) + piece[at + 1 :]
            with pytest.raises(Damaged):
                await standby.log.append([*rest[:number], bad, *rest[number + 1 :]])
    assert standby.storage.image() == before
    assert standby.log.position == position
    await standby.log.append(rest)
    assert standby.log.position == life.journal.position


@pytest.mark.parametrize(
    "change", ["lost", "twice", "swapped", "cut short", "of another log", "not from the beginning"]
)
async def test_what_does_not_continue_the_log_is_refused(change: str) -> None:
    life = await a_primary(1, 3, 2, 120)
    pieces = pieces_behind(life.journal, LogPosition(0, 0, 0, 0))
    other = pieces_behind((await a_primary(1, 3, 2, 120)).journal, LogPosition(0, 0, 0, 0))
    assert len(pieces) > 4
    changed = {
        "lost": pieces[:2] + pieces[3:],
        "twice": [*pieces[:3], *pieces[2:]],
        "swapped": [*pieces[:2], pieces[3], pieces[2], *pieces[4:]],
        "cut short": [*pieces[:2], pieces[2][:-1]],
        "of another log": [*pieces[:2], *other[2:]],
        "not from the beginning": pieces[1:],
    }[change]
    standby = Standby()
    standby.open()
    with pytest.raises(Damaged):
        await standby.log.append(changed)
    assert standby.log.position.sequence == 0
    assert segment_names(standby.storage) == []


async def test_a_later_segment_is_no_beginning_of_a_log() -> None:
    life = await a_primary(200, 200)
    later = [p for p in pieces_behind(life.journal, LogPosition(0, 0, 0, 0)) if p.startswith(b"STANLOG")][1:]
    standby = Standby()
    standby.open()
    with pytest.raises(Damaged, match="cannot begin with segment 2"):
        await standby.log.append(later)


# Cutting and starting over


async def test_a_standby_goes_back_to_where_both_logs_are_the_same() -> None:
    standby, old, new = await a_divergence()
    end, lost = standby.log.position, [content(standby.storage, snapshot_names(standby.storage)[0])]
    pieces = pieces_behind(old.journal, LogPosition(0, 0, 0, 0))
    report = standby.cut(new)
    assert (report.first_lsn, report.last_lsn, report.records) == (124, 230, 107)
    assert "107 records (LSN 124 to 230)" in report.sentence
    assert "it was never there" in report.sentence
    assert set(report.files) == set(standby.storage.names("quarantine"))
    evidence = quarantined(standby.storage)
    kept = b"".join(evidence)
    for piece in pieces[-6:]:
        assert piece in kept
    assert lost[0] in evidence
    assert standby.log.position.lsn == 123 < end.lsn
    await standby.follow(new, 2)
    await standby.log.close()
    for log in (StandbyLog.open(MemoryStorage(standby.storage.image()), OPTIONS),):
        assert users_of(log) == new.history
    assert state_of(Journal.open(MemoryStorage(standby.storage.image()), OPTIONS)) == new.history


async def test_nothing_is_cut_to_where_the_state_cannot_be_rebuilt() -> None:
    standby, old, new = await a_divergence()
    for _ in range(3):
        await old.commit(100)
        await standby.follow(old)
        await standby.snapshot(old)
    assert sequence_of(segment_names(standby.storage)[0]) > 1
    assert standby.log.best_cut(segment_starts(new.storage)) is None
    assert standby.log.best_cut(segment_starts(old.storage)) is not None


async def test_starting_over_puts_everything_aside() -> None:
    standby, _, new = await a_divergence()
    await standby.log.close()
    had = {content(standby.storage, n) for n in segment_names(standby.storage) + snapshot_names(standby.storage)}
    standby.open()
    report = standby.log.start_over()
    assert (report.first_lsn, report.last_lsn, report.records) == (1, 230, 230)
    assert had <= quarantined(standby.storage)
    assert (standby.log.position.sequence, standby.log.log_id) == (0, b"")
    assert segment_names(standby.storage) + snapshot_names(standby.storage) == []
    await standby.follow(new)
    await standby.log.close()
    standby.open()
    assert users_of(standby.log) == new.history


async def test_without_room_for_the_evidence_nothing_is_removed() -> None:
    standby, old, new = await a_divergence()
    standby.storage.faults.capacity_bytes = 0
    with pytest.raises(StorageFailed, match="to keep a copy of what is cut"):
        standby.cut(new)
    with pytest.raises(StorageFailed):
        await standby.log.append([])
    users = users_of(StandbyLog.open(MemoryStorage(standby.storage.image()), OPTIONS))
    assert users == old.history


# Snapshots


async def test_a_snapshot_is_taken_up_and_the_log_behind_it_follows(storage: Storage) -> None:
    life = await a_primary(3, 100, 20)
    for _ in range(3):
        await life.commit(60)
        await life.snapshot()
    await life.commit(4)
    log = StandbyLog.open(storage, OPTIONS)
    name = life.journal.newest_snapshot()
    assert name is not None
    header = await log.receive_snapshot(slices_of(life.storage, name))
    assert (header.lsn, log.log_id, log.durable_lsn, log.epoch) == (303, life.journal.log_id, 303, life.journal.epoch)
    assert [user for part in log.snapshot_parts() for user in part] == life.history[:303]  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        log.promote(RESTARTS_PER_TERM * 2)
    with pytest.raises(Refused):
        await log.snapshot(10, 1_000, [])
    place = next(p for p in segment_starts(life.storage) if p.sequence == header.position.sequence - 1)
    pieces = [piece.data for piece in read_pieces(life.storage, place, 1 << 20, life.journal.position)]
    with pytest.raises(Damaged, match="cannot begin with"):
        await log.append(pieces_behind(life.journal, place)[:0] or [header_of(life, -1)])
    await log.append(pieces)
    assert log.position == life.journal.position
    await log.close()
    log = StandbyLog.open(storage, OPTIONS)
    assert users_of(log) == life.history


def header_of(life: Life, index: int) -> bytes:
    """Return the header of a segment that is not the one of the newest snapshot."""
    names = segment_names(life.storage)
    return life.storage.read(names[index - 1], 0, 64)


async def test_a_snapshot_that_does_not_verify_is_refused() -> None:
    life = await a_primary(3, 100)
    await life.snapshot()
    name = life.journal.newest_snapshot()
    assert name is not None
    whole = content(life.storage, name)
    for bad in (whole[:50], whole[:-1], whole + b"x", b"", whole[:300] + b"?" + whole[301:], b"?" + whole[1:]):
        standby = Standby()
        standby.open()

        async def slices(data: bytes = bad) -> "Iterator[bytes]":
            yield data

        with pytest.raises(Damaged):
            await standby.log.receive_snapshot(slices())  # type: ignore[arg-type]
        assert snapshot_names(standby.storage) == standby.storage.names("snapshots") == []
        await standby.follow(life)


async def test_a_restart_before_the_log_has_come_to_the_snapshot_begins_from_nothing() -> None:
    life = await a_primary(3, 100)
    await life.snapshot()
    standby = Standby()
    standby.open()
    name = life.journal.newest_snapshot()
    assert name is not None
    header = await standby.log.receive_snapshot(slices_of(life.storage, name))
    place = next(p for p in segment_starts(life.storage) if p.sequence == header.position.sequence - 1)
    await standby.log.append([piece.data for piece in read_pieces(life.storage, place, 1)])
    assert why_incomplete(standby.storage) == RECEIVING
    with pytest.raises(Damaged, match="start it as a follower again"):
        Journal.open(MemoryStorage(standby.storage.image()), OPTIONS)
    await standby.log.close()
    standby.open()
    assert (standby.log.position.sequence, standby.log.found.snapshot) == (0, None)
    assert segment_names(standby.storage) + snapshot_names(standby.storage) == []
    await standby.receive(life)


async def test_behind_a_snapshot_the_whole_log_may_follow_too() -> None:
    life = await a_primary(3, 200)
    await life.snapshot()
    await life.commit(2)
    standby = Standby()
    standby.open()
    name = life.journal.newest_snapshot()
    assert name is not None
    await standby.log.receive_snapshot(slices_of(life.storage, name))
    await standby.follow(life, 1, 3)
    assert standby.is_whole()
    await standby.log.close()
    standby.open()
    assert users_of(standby.log) == life.history


async def test_a_log_that_contradicts_the_snapshot_before_it_is_refused() -> None:
    _, old, new = await a_divergence()
    await new.snapshot()
    fresh = Standby()
    fresh.open()
    name = new.journal.newest_snapshot()
    assert name is not None
    await fresh.log.receive_snapshot(slices_of(new.storage, name))
    with pytest.raises(Damaged, match="contradict each other"):
        await fresh.log.append(pieces_behind(old.journal, LogPosition(0, 0, 0, 0)))
    assert fresh.log.position.sequence == 0
    await fresh.receive(new)


async def test_a_standby_writes_snapshots_and_prunes() -> None:
    life = await a_primary(3)
    standby = await a_standby(life)
    for count in (90, 90, 90, 90):
        await life.commit(count)
        await standby.follow(life, 3)
        await standby.snapshot(life)
    assert len(snapshot_names(standby.storage)) == 3
    assert sequence_of(segment_names(standby.storage)[0]) > 1
    with pytest.raises(Refused):
        await standby.log.snapshot(standby.log.position.lsn + 1, 1_000, [])
    stats = standby.log.stats()
    assert (stats.last_lsn, stats.durable_lsn, stats.committed_records, stats.snapshots) == (363, 363, 363, 3)
    assert stats.snapshot_last is not None
    await standby.log.close()
    standby.open()
    assert users_of(standby.log) == life.history
    lsn = 363 - 45
    await standby.log.snapshot(lsn, 1_000, parts_of(life.history[:lsn]))


async def test_a_snapshot_of_a_history_that_was_cut_meanwhile_gets_no_name() -> None:
    standby, old, new = await a_divergence()

    def parts() -> Iterator[list[str]]:
        yield old.history[:100]
        standby.cut(new)
        yield old.history[100:]

    with pytest.raises(Refused, match="cut or closed meanwhile"):
        await standby.log.snapshot(len(old.history), 1_000, parts())
    assert standby.storage.names("snapshots") == [snapshot_name(123)]
    assert standby.log.stats().snapshot_failures == 1


async def test_records_can_be_read_back() -> None:
    life = await a_primary(3, 100, 20)
    standby = await a_standby(life)
    got = [pair async for batch in standby.log.read_records(90, 110) for pair in batch]
    assert [(lsn, record.user_id) for lsn, record in got] == list(enumerate(life.history, 1))[89:110]


# Promotion


async def test_a_promoted_standby_leads_on_and_a_restart_replays_everything(storage: Storage) -> None:
    life = await a_primary(3, 100, 20)
    log = StandbyLog.open(storage, OPTIONS)
    await log.append(pieces_behind(life.journal, log.position))
    journal = log.promote(7 * RESTARTS_PER_TERM, "nobody knows")
    assert (journal.epoch, journal.lost, journal.last_lsn) == (7 * RESTARTS_PER_TERM, "nobody knows", 123)
    assert journal.position == LogPosition(123, life.journal.position.chain, life.journal.position.sequence + 1, 64)
    assert [record.user_id for _, record in journal.replay()] == life.history  # type: ignore[union-attr]
    pieces: list[bytes] = []
    journal.on_durable = lambda taken: pieces.extend(piece.data for piece in taken)
    await journal.start()
    for lsn in range(124, 224):
        await journal.when_durable(journal.append([joined(lsn, f"7-{lsn}")]))  # type: ignore[misc]
    await log.close()
    await journal.close()
    journal = Journal.open(storage, OPTIONS)
    assert state_of(journal) == life.history + [f"7-{lsn}" for lsn in range(124, 224)]
    assert journal.lost is None
    await journal.close()


async def test_a_promotion_by_an_agreement_has_lost_nothing() -> None:
    life = await a_primary(3)
    standby = await a_standby(life)
    assert standby.log.promote(7 * RESTARTS_PER_TERM).lost is None


async def test_an_empty_standby_is_not_promoted(storage: Storage) -> None:
    log = StandbyLog.open(storage, OPTIONS)
    with pytest.raises(Refused, match="not received"):
        log.promote(7 * RESTARTS_PER_TERM)
    await log.close()


async def test_a_deposed_primary_goes_on_as_a_standby_of_the_next() -> None:
    life = await a_primary(3, 40)
    standby = await a_standby(life)
    await life.commit(2)
    new = await standby.promote(life, 8)
    await new.commit(4, 100)
    await life.close()
    deposed = Standby(life.storage)
    deposed.open()
    report = deposed.cut(new)
    assert report.records == 2
    await deposed.follow(new, 1, 1)
    await deposed.log.close()
    deposed.open()
    assert users_of(deposed.log) == new.history


async def test_a_header_that_was_never_shipped_is_no_common_ground() -> None:
    old = await a_primary(3, 40)
    while len(segment_starts(old.journal.storage)) < 3:
        await old.commit(20)
    pieces = pieces_behind(old.journal, beginning(old.journal.log_id))
    header = max(at for at, piece in enumerate(pieces) if piece.startswith(SEGMENT_MAGIC))
    deposed, standby = Standby(), Standby()
    for follower, count in ((deposed, header + 1), (standby, header)):
        follower.open()
        await follower.log.append(pieces[:count])
    new = await standby.promote(old, 8)
    await new.commit(5)
    place = deposed.log.position
    assert is_in_log(new.journal.storage, place), "the chain alone does not tell the two headers apart"
    assert not is_in_log(new.journal.storage, place, deposed.log.epoch)
    assert deposed.cut(new).records == 0
    await deposed.follow(new)
    assert is_in_log(new.journal.storage, deposed.log.position, deposed.log.epoch)
    name = segment_names(new.journal.storage)[-1]
    header_bytes = len(pieces[header])
    assert deposed.storage.read(name, 0, header_bytes) == new.journal.storage.read(name, 0, header_bytes)


async def test_a_copied_folder_is_a_standby_and_a_primary(tmp_path: Path) -> None:
    life = await a_primary(3, 100, 20)
    standby = await a_standby(life)
    await standby.snapshot(life)
    await life.commit(9)
    await standby.follow(life)
    assert users_of(StandbyLog.open(MemoryStorage(standby.storage.image()), OPTIONS)) == life.history
    assert state_of(Journal.open(MemoryStorage(standby.storage.image()), OPTIONS)) == life.history
    copied = Standby(MemoryStorage(life.storage.image()))
    copied.open()
    await copied.follow(life)
    assert beginning(life.journal.log_id).lsn == 0
