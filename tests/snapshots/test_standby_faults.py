"""A standby's log in bad times: full disks, torn batches, damage, and a power cut at every moment."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged, StorageFailed
from snapshots.cutting import EMPTYING, RECEIVING
from snapshots.disk_model import Image
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage, crash_states
from snapshots.notes import MIRRORED_NAME, why_incomplete
from snapshots.recovery import Decision
from snapshots.shipping import is_in_log
from snapshots.standby import StandbyLog
from snapshots.survey import segment_names
from tests.snapshots.pair import (
    OPTIONS,
    Held,
    Standby,
    a_divergence,
    a_new_term,
    a_primary,
    a_standby,
    judge_standby,
    lead_a_standbys_life,
    pieces_behind,
    quarantined,
    users_of,
)
from tests.snapshots.scenario import SMALL, Life, until

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
        elif step == "fork":
            await follow_whoever_leads(standby, life, [1])
            led = await a_new_term(standby, life, 10 + len(histories))
            await life.commit(2, 3)
            await follow_whoever_leads(standby, life, [])
            life = led
            histories.append(life.history)
    return standby, histories


async def follow_whoever_leads(standby: Standby, life: Life, counts: list[int]) -> None:
    if standby.log.position.sequence == 0 and life.journal.newest_snapshot() is not None:
        await standby.receive(life)
    if standby.log.position.sequence and not is_in_log(life.journal.storage, standby.log.position, standby.log.epoch):
        standby.cut(life)
    await standby.follow(life, *counts)


counted: list[int] = []


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
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
