"""A standby's log: a copy byte for byte, whole after any crash, cut or emptied without losing evidence."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged, Locked, Refused, StorageFailed
from snapshots.cutting import EMPTYING, RECEIVING
from snapshots.disk_model import Image
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage, crash_states
from snapshots.notes import MIRRORED_NAME, why_incomplete
from snapshots.recovery import Decision
from snapshots.segments import LogPosition
from snapshots.shipping import is_in_log, read_pieces, segment_starts
from snapshots.snapshot import snapshot_name
from snapshots.standby import StandbyLog
from snapshots.storage import DiskStorage, Storage
from snapshots.survey import segment_names, snapshot_names
from snapshots.wal import RESTARTS_PER_TERM, sequence_of
from tests.snapshots.pair import (
    OPTIONS,
    Held,
    Standby,
    a_divergence,
    a_new_term,
    a_primary,
    a_standby,
    beginning,
    content,
    judge_standby,
    lead_a_standbys_life,
    parts_of,
    pieces_behind,
    quarantined,
    slices_of,
    users_of,
)
from tests.snapshots.scenario import SMALL, Life, joined, state_of, until


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
    with pytest.raises(Damaged, match="does not begin with segment 2"):
        await standby.log.append(later)


# Failing


async def test_a_failed_flush_is_final() -> None:
    life = await a_primary(1, 3)
    standby = await a_standby(life)
    await life.commit(1)
    standby.storage.faults.fail_at_call = standby.storage.faults.calls + 2
    with pytest.raises(StorageFailed):
        await standby.follow(life)
    assert standby.log.stats().failed
    with pytest.raises(StorageFailed):
        await standby.follow(life)
    assert standby.log.position.lsn == 4
    await standby.log.close()


async def test_a_full_disk_is_waited_for() -> None:
    life = await a_primary(1, 3)
    standby = Standby(options=JournalOptions(**{**SMALL, "reserve_retry_s": 0.005}))
    standby.open()
    await standby.follow(life)
    await life.commit(200)
    standby.storage.faults.capacity_bytes = 4096 + 2048
    appending = asyncio.create_task(standby.log.append(pieces_behind(life.journal, standby.log.position)))
    await until(lambda: standby.log.stats().storage_full)
    assert not appending.done()
    standby.storage.faults.capacity_bytes = None
    await appending
    assert standby.log.position == life.journal.position
    assert not standby.log.stats().storage_full


@pytest.mark.parametrize("end", ["cancelled", "closed"])
async def test_who_waits_for_a_full_disk_can_give_up_and_go_on_later(end: str) -> None:
    life = await a_primary(1, 3)
    standby = Standby(options=JournalOptions(**{**SMALL, "reserve_retry_s": 30}))
    standby.open()
    await standby.follow(life)
    await life.commit(200)
    standby.storage.faults.capacity_bytes = 4096 + 2048
    appending = asyncio.create_task(standby.log.append(pieces_behind(life.journal, standby.log.position)))
    await until(lambda: standby.log.stats().storage_full)
    if end == "cancelled":
        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending
    else:
        await standby.log.close()
        with pytest.raises(StorageFailed, match="no space left"):
            await appending
        standby.open()
    standby.storage.faults.capacity_bytes = None
    await standby.follow(life)
    assert standby.log.position == life.journal.position


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


async def test_an_append_that_is_cancelled_is_finished_first(monkeypatch: pytest.MonkeyPatch) -> None:
    life = await a_primary(1, 3)
    standby = await a_standby(life)
    await life.commit(5)
    reached, go_on = threading.Event(), threading.Event()
    perform = standby.storage.perform

    def held(action: str, *arguments: object) -> object:
        if action == "fdatasync":
            reached.set()
            assert go_on.wait(10)
        return perform(action, *arguments)

    monkeypatch.setattr(standby.storage, "perform", held)
    appending = asyncio.create_task(standby.log.append(pieces_behind(life.journal, standby.log.position)))
    await until(reached.is_set)
    appending.cancel()
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.sleep(0)
    assert not appending.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert standby.log.position == life.journal.position


# Damage and torn batches


async def test_a_torn_batch_is_cut_though_a_whole_frame_stands_behind_the_tear() -> None:
    life = await a_primary(2)
    standby = await a_standby(life)
    kept = standby.log.position
    await life.commit(8, 9, 7)
    await standby.follow(life)
    torn = zeroed(standby.storage.image(), segment_names(standby.storage)[0], kept.offset + 30)
    for log in (StandbyLog.open(MemoryStorage(torn), OPTIONS), Journal.open(MemoryStorage(torn), OPTIONS)):
        assert log.found.decision is Decision.CUT_TAIL
        assert log.found.last_lsn == kept.lsn
        assert log.found.torn_frames == 2
        assert not log.found.alarms


def zeroed(image: Image, name: str, offset: int) -> Image:
    files = dict(image.files)
    files[name] = files[name][:offset] + bytes(60) + files[name][offset + 60 :]
    return Image(image.folders, tuple(sorted(files.items())))


async def test_damage_of_what_was_noted_to_be_on_disk_is_refused() -> None:
    life = await a_primary(2, 4, 3, 90)
    standby = await a_standby(life)
    standby.log._writer.note_position()
    image = standby.storage.image()
    last = segment_names(standby.storage)[-1]
    for name in segment_names(standby.storage):
        end = standby.log.position.offset if name == last else len(dict(image.files)[name])
        for offset in range(0, end, 7):
            files = dict(image.files)
            files[name] = files[name][:offset] + bytes([files[name][offset] ^ 16]) + files[name][offset + 1 :]
            bad = Image(image.folders, tuple(sorted(files.items())))
            for opener in (StandbyLog.open, Journal.open):
                with pytest.raises(Damaged):
                    opener(MemoryStorage(bad), OPTIONS)


async def test_a_log_that_ends_before_what_was_noted_is_refused() -> None:
    life = await a_primary(2, 4, 3)
    standby = await a_standby(life)
    await standby.log.close()
    image = standby.storage.image()
    (name,) = segment_names(standby.storage)
    content = dict(image.files)[name]
    for shorter in (content[:-50], content[:-50] + bytes(50), content[:64]):
        bad = Image(image.folders, tuple(sorted({**dict(image.files), name: shorter}.items())))
        for opener in (StandbyLog.open, Journal.open):
            with pytest.raises(Damaged):
                opener(MemoryStorage(bad), OPTIONS)
    without = Image(image.folders, tuple(file for file in image.files if file[0] != name))
    with pytest.raises(Damaged, match="which was on disk"):
        StandbyLog.open(MemoryStorage(without), OPTIONS)


async def test_the_note_follows_when_nothing_more_comes() -> None:
    life = await a_primary(2)
    standby = Standby(options=JournalOptions(**{**SMALL, "idle_frame_ms": 1}))
    standby.open()
    await standby.follow(life)
    (name,) = segment_names(standby.storage)
    offset = standby.log.position.offset - 1

    def is_proven() -> bool:
        image = standby.storage.image()
        files = dict(image.files)
        files[name] = files[name][:offset] + bytes([files[name][offset] ^ 1]) + files[name][offset + 1 :]
        try:
            StandbyLog.open(MemoryStorage(Image(image.folders, tuple(sorted(files.items())))), OPTIONS)
        except Damaged:
            return True
        return False

    await until(is_proven)


async def test_a_note_that_cannot_be_read_makes_nothing_of_a_whole_log() -> None:
    life = await a_primary(2, 4)
    standby = await a_standby(life)
    await standby.log.close()
    image = standby.storage.image()
    bad = Image(image.folders, tuple(sorted({**dict(image.files), MIRRORED_NAME: bytes(2000)}.items())))
    assert users_of(StandbyLog.open(MemoryStorage(bad), OPTIONS)) == life.history


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
    with pytest.raises(Damaged, match="not the one in which"):
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


# Crashes


@pytest.mark.slow
async def test_a_power_cut_at_any_moment_of_a_standbys_life_loses_nothing(report: Callable[[str], None]) -> None:
    standby = Standby()
    histories = await lead_a_standbys_life(standby)
    states = list(crash_states(standby.storage.trace))
    for state in states:
        judge_standby(state, histories)
    incomplete = sum(why_incomplete(MemoryStorage(state.image)) in (EMPTYING, RECEIVING) for state in states)
    whole = sum(isinstance(state.promised, Held) and bool(state.promised.users) for state in states)
    torn = [StandbyLog.open(MemoryStorage(state.image), OPTIONS).found.torn_frames for state in states]
    several = sum(count > 1 for count in torn)
    report(
        f"crash states of a standby's life: {len(states)}, {incomplete} of them in an incomplete folder, "
        f"{sum(map(bool, torn))} with a torn tail, {several} of more than one frame"
    )
    assert min(len(states) - 500, incomplete - 20, whole - 100, several - 10) > 0


STEPS = st.one_of(
    st.tuples(st.just("commit"), st.lists(st.integers(1, 30), min_size=1, max_size=6)),
    st.tuples(st.just("follow"), st.lists(st.integers(1, 5), max_size=3)),
    st.tuples(st.sampled_from(("restart", "snapshot", "fork", "snapshot of the primary")), st.just([])),
)


async def lead(steps: list[tuple[str, list[int]]]) -> tuple[Standby, list[list[str]]]:
    """Take the steps of a pair's life; a fork makes a copy the primary, and the standby goes back if it has to."""
    life, standby = await a_primary(1), Standby()
    histories = [life.history]
    standby.open()
    for step, counts in [*steps, ("follow", [1])]:
        if step == "commit":
            await life.commit(*counts)
        elif step == "follow":
            await follow_whoever_leads(standby, life, counts)
        elif step == "restart":
            await standby.log.close()
            standby.open()
        elif step == "snapshot" and standby.log.position == life.journal.position:
            await standby.snapshot(life)
        elif step == "snapshot of the primary":
            await life.snapshot()
        elif step == "fork" and standby.log.position.sequence:
            led = await a_new_term(standby, life, 10 + len(histories))
            await life.commit(2, 3)
            await follow_whoever_leads(standby, life, [])
            life = led
            histories.append(life.history)
    return standby, histories


async def follow_whoever_leads(standby: Standby, life: Life, counts: list[int]) -> None:
    if standby.log.position.sequence == 0 and life.journal.newest_snapshot() is not None:
        await standby.receive(life)
    if standby.log.position.sequence and not is_in_log(life.journal.storage, standby.log.position):
        standby.cut(life)
    await standby.follow(life, *counts)


counted: list[int] = []


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=6, max_size=16))
def test_a_power_cut_at_any_moment_of_any_standbys_life_loses_nothing(steps: list[tuple[str, list[int]]]) -> None:
    standby, histories = asyncio.run(lead(steps))
    states = list(crash_states(standby.storage.trace))
    for state in states:
        judge_standby(state, histories)
    counted.append(len(states))


def test_the_lives_that_were_led_are_counted(report: Callable[[str], None]) -> None:
    report(f"crash states of {len(counted)} random standbys' lives: {sum(counted)}")


@pytest.mark.parametrize("way", ["cut", "start over"])
async def test_no_evidence_is_lost_though_a_cut_is_killed_at_any_moment(way: str) -> None:
    standby, old, new = await a_divergence()
    image = standby.storage.image()
    copied = Standby(MemoryStorage(image))
    copied.open()
    copied.storage.mark("begun")
    (copied.cut(new) if way == "cut" else copied.log.start_over())
    evidence = quarantined(copied.storage)
    assert evidence
    for state in crash_states(copied.storage.trace, image):
        if state.promised is None:
            continue
        again = Standby(MemoryStorage(state.image))
        again.open()
        assert users_of(again.log) in ([], old.history, new.history[:123]) or way == "cut"
        if way == "cut" and again.log.position.lsn > 123:
            again.cut(new)
        elif way == "start over" and again.log.position.sequence:
            again.log.start_over()
        assert evidence <= quarantined(again.storage)


async def test_a_recovery_from_a_torn_batch_can_be_cut_short_at_any_moment() -> None:
    life = await a_primary(2)
    standby = await a_standby(life)
    await life.commit(8, 9, 7)
    since = len(standby.storage.trace)
    await standby.follow(life)
    for state in list(crash_states(standby.storage.trace))[since::3]:
        for opener in (StandbyLog.open, Journal.open):
            storage = MemoryStorage(state.image)
            opener(storage, OPTIONS)
            for again in list(crash_states(storage.trace, state.image))[::4]:
                judge_standby(CrashState(0, state.promised, again.image), [life.history])


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
