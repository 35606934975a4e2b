"""The journal's promises to its callers: order, durability, refusals, and an end that claims nothing."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import BadConfiguration, Damaged, Locked, Refused, StorageFailed
from engine.records import Left
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage, crash_states
from snapshots.scan import frame_headers_after
from snapshots.storage import DiskStorage
from snapshots.wal import RESTARTS_PER_TERM
from tests.snapshots.scenario import SMALL, Life, Promise, check_promise, joined, state_of


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    life = Life(MemoryStorage())
    await life.open()
    yield life
    await life.journal.close()


def headers(storage: MemoryStorage) -> list[tuple[int, int, int]]:
    """Return (first LSN, count, durable LSN) of every frame in the log."""
    names = [name for name in storage.names("log") if name.endswith(".seg")]
    found = [h for name in names for _, h in frame_headers_after(storage, name, 0)]
    return [(h.first_lsn, h.count, h.durable_lsn) for h in found]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something in another thread has happened."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Gate:
    """Holds the commit thread before its next fdatasync, so that a test decides what happens meanwhile."""

    def __init__(self, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        perform = storage.perform

        def held(action: str, *arguments: object) -> object:
            if action == "fdatasync":
                self.reached.set()
                assert self.opened.wait(10)
            return perform(action, *arguments)

        monkeypatch.setattr(storage, "perform", held)

    async def wait(self) -> None:
        await asyncio.to_thread(self.reached.wait, 10)


# Order and durability


async def test_lsns_count_records_from_one(life: Life) -> None:
    assert life.append(1) == 1
    assert life.append(3) == 4
    assert life.journal.last_lsn == 4


async def test_records_of_one_moment_share_one_frame(life: Life) -> None:
    for _ in range(5):
        life.append(1)
    await life.journal.when_durable(5)
    assert headers(life.storage) == [(1, 5, 0)]


async def test_everything_that_comes_during_a_commit_shares_the_next_one(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(life.storage, monkeypatch)
    life.append(1)
    await gate.wait()
    waiters = [life.journal.when_durable(life.append(1)) for _ in range(4)]
    assert life.journal.durable_lsn == 0
    gate.opened.set()
    await asyncio.gather(*waiters)
    assert headers(life.storage) == [(1, 1, 0), (2, 4, 1)]
    assert life.journal.stats().commits == 2


async def test_a_waiter_is_answered_by_the_commit_that_holds_its_record_and_not_before(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(life.storage, monkeypatch)
    first = life.journal.when_durable(life.append(1))
    await gate.wait()
    second = life.journal.when_durable(life.append(1))
    again = life.journal.when_durable(1)
    gate.opened.set()
    await first
    assert again.done()
    assert not second.done()
    await second


async def test_what_is_durable_needs_no_waiting(life: Life) -> None:
    await life.commit(1)
    assert life.journal.when_durable(1) is None
    assert life.journal.when_durable(0) is None


async def test_a_caller_who_goes_away_takes_nothing_with_him(life: Life) -> None:
    lsn = life.append(1)
    mine, yours = life.journal.when_durable(lsn), life.journal.when_durable(lsn)
    mine.cancel()
    await yours
    assert life.journal.durable_lsn == lsn


async def test_a_batch_too_large_for_a_frame_is_split_in_order(life: Life) -> None:
    await life.commit(100)
    assert len(headers(life.storage)) > 3
    life.kill()
    assert state_of(Journal.open(life.storage, life.options)) == life.history


async def test_a_record_too_large_for_any_frame_fails_the_journal_loudly() -> None:
    life = Life(MemoryStorage())
    await life.open()
    life.journal.append([joined(1, "x" * 5_000)])
    failure = await life.journal.failed
    assert "does not fit" in str(failure)
    await life.journal.close()


async def test_a_text_with_half_a_surrogate_pair_is_stored_and_not_fatal(life: Life) -> None:
    await life.journal.when_durable(life.journal.append([joined(1, "\ud800")]))
    life.kill()
    assert state_of(Journal.open(life.storage, life.options)) == ["\ud800"]


async def test_an_idle_journal_states_once_what_is_durable() -> None:
    life = Life(MemoryStorage(), options=JournalOptions(**{**SMALL, "idle_frame_ms": 1}))
    await life.open()
    await life.commit(2)
    await until(lambda: len(headers(life.storage)) == 2)
    assert headers(life.storage) == [(1, 2, 0), (3, 0, 2)]
    await life.close()
    assert headers(life.storage) == [(1, 2, 0), (3, 0, 2)]


async def test_an_orderly_end_commits_everything_and_says_so(life: Life) -> None:
    life.append(2)
    await life.close()
    assert headers(life.storage)[-1] == (3, 0, 2)
    assert await life.journal.failed is None
    with pytest.raises(StorageFailed, match="closed"):
        life.append(1)


# Opening


async def test_each_start_takes_the_next_epoch_and_the_first_one_ever_is_term_one() -> None:
    storage = MemoryStorage()
    for restarts in range(4):
        journal = Journal.open(storage, JournalOptions(**SMALL))
        assert journal.epoch == RESTARTS_PER_TERM + restarts
        storage = storage.kill()


def test_a_promised_epoch_is_never_undercut() -> None:
    storage = MemoryStorage()
    assert (
        Journal.open(storage, JournalOptions(**SMALL, least_epoch=5 * RESTARTS_PER_TERM)).epoch == 5 * RESTARTS_PER_TERM
    )
    assert Journal.open(storage.kill(), JournalOptions(**SMALL)).epoch == 5 * RESTARTS_PER_TERM + 1


def test_a_held_folder_is_refused_and_a_failed_opening_lets_it_go() -> None:
    storage = MemoryStorage()
    journal = Journal.open(storage, JournalOptions(**SMALL))
    with pytest.raises(Locked):
        Journal.open(MemoryStorage(shared=storage._shared), JournalOptions(**SMALL))
    storage = storage.kill()
    storage.faults.fail_at_call = 3
    with pytest.raises(StorageFailed):
        Journal.open(storage, JournalOptions(**SMALL))
    storage.faults.fail_at_call = None
    assert Journal.open(storage, JournalOptions(**SMALL)).epoch > journal.epoch


@pytest.mark.parametrize("wrong", [{"segment_mib": 0.001}, {"keep_snapshots": 2}, {"idle_frame_ms": 0}])
def test_settings_that_break_a_promise_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadConfiguration):
        JournalOptions(**wrong)  # type: ignore[arg-type]


async def test_a_replay_that_would_end_short_is_refused(life: Life) -> None:
    await life.commit(3, 4)
    life.kill()
    journal = Journal.open(life.storage, life.options)
    name = life.storage.names("log")[0]
    life.storage.open_file(name).truncate(150)
    with pytest.raises(Damaged, match="changed since it was verified"):
        list(journal.replay())


# Refusals


async def test_a_full_queue_is_refused_to_everybody_with_a_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(MemoryStorage(), options=JournalOptions(**SMALL, queue_max_records=3))
    await life.open()
    gate = Gate(life.storage, monkeypatch)
    waiter = life.journal.when_durable(life.append(2))
    assert life.journal.refusal(essential=False) is None
    life.append(1)
    for essential in (False, True):
        refused = life.journal.refusal(essential=essential)
        assert (refused.code, refused.status, refused.retry_after_s) == ("overloaded", 503, 1)
    gate.opened.set()
    await waiter
    await life.close()


async def test_the_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(MemoryStorage(), options=JournalOptions(**SMALL, queue_max_bytes=1_000))
    await life.open()
    gate = Gate(life.storage, monkeypatch)
    waiter = life.journal.when_durable(life.append(20))
    refused = life.journal.refusal(essential=False)
    assert refused.code == "overloaded"
    gate.opened.set()
    await waiter
    await life.close()


async def test_a_full_disk_refuses_joins_first_then_everybody_and_ends_nothing() -> None:
    life = Life(MemoryStorage(), options=JournalOptions(**{**SMALL, "segment_mib": 1 / 64, "reserve_retry_s": 0.001}))
    life.storage.faults.capacity_bytes = 20_000
    await life.open()
    assert life.journal.stats().storage_full
    joins = leaves = 0
    while life.journal.refusal(essential=False) is None:
        await life.commit(1)
        joins += 1
    assert life.journal.refusal(essential=False).code == "storage_full"
    while life.journal.refusal(essential=True) is None:
        await life.commit(1)
        leaves += 1
    assert life.journal.refusal(essential=True).code == "storage_full"
    assert joins > 2 * leaves > 40
    assert not life.journal.failed.done()
    life.storage.faults.capacity_bytes = None
    await until(lambda: life.journal.refusal(essential=False) is None)
    await life.commit(50)
    assert not life.journal.stats().storage_full
    life.kill()
    assert state_of(Journal.open(life.storage, life.options)) == life.history


async def test_a_batch_that_finds_the_disk_full_waits_for_room() -> None:
    life = Life(MemoryStorage(), options=JournalOptions(**{**SMALL, "reserve_retry_s": 0.001}))
    life.storage.faults.capacity_bytes = 5_000
    await life.open()
    waiter = life.journal.when_durable(life.append(300))
    await until(lambda: life.journal.refusal(essential=True) is not None)
    assert not waiter.done()
    life.storage.faults.capacity_bytes = None
    await waiter
    await life.close()


async def test_a_restart_on_a_full_disk_takes_a_smaller_segment() -> None:
    options = JournalOptions(**{**SMALL, "segment_mib": 1})
    life = Life(MemoryStorage(), options=options)
    life.storage.faults.capacity_bytes = (1 << 20) + 1000
    await life.open()
    await life.commit(9)
    life.kill()
    life.storage.faults.capacity_bytes = 600_000
    await life.open()
    assert life.history[:9] == [f"1-{lsn}" for lsn in range(1, 10)]
    await life.commit(3)
    await life.close()


def test_no_room_even_for_a_small_segment_says_what_to_do() -> None:
    storage = MemoryStorage()
    storage.faults.capacity_bytes = 100
    with pytest.raises(StorageFailed, match="make room, then start again"):
        Journal.open(storage, JournalOptions())


# Failing


async def live_until_failure(life: Life) -> StorageFailed | None:
    """Lead a life of commits and snapshots until something fails; a failed snapshot is no reason to stop."""
    try:
        await life.open()
        for step in range(6):
            await life.commit(2, 30)
            if step % 2:
                await snapshot_or_alarm(life)
        await life.close()
    except (StorageFailed, Refused) as error:
        if life.journal is None or not hasattr(life.journal, "failed"):
            assert isinstance(error, StorageFailed)
            return error
    return await life.journal.failed


async def snapshot_or_alarm(life: Life) -> None:
    with suppress(StorageFailed):
        await life.snapshot()
    await life.commit(1)


async def call_count() -> int:
    life = Life(MemoryStorage())
    assert await live_until_failure(life) is None
    return life.storage.faults.calls


@pytest.mark.slow
async def test_an_error_at_any_call_leads_to_no_false_claim_and_to_an_end(report: Callable[[str], None]) -> None:
    count = await call_count()
    failed: dict[str, int] = {}
    for call in range(1, count + 1):
        life = Life(MemoryStorage())
        life.storage.faults.fail_at_call = call
        failure = await live_until_failure(life)
        action = life.storage.faults.failed_call
        if failure is not None:
            failed[action] = failed.get(action, 0) + 1
            assert action in str(failure)
        await hold_to_promises(life)
    report(f"calls failed one by one: {count}; those that ended the journal: {failed}")
    assert {"write", "fdatasync", "fsync", "rename", "sync_directory", "close", "truncate"} <= set(failed)


async def hold_to_promises(life: Life) -> None:
    """Restart on the machine that goes on, and after power cuts at the end; what was promised must be there."""
    promises = [entry.value for entry in life.storage.trace if hasattr(entry, "value")]
    promise = promises[-1] if promises else Promise()
    check_promise(Journal.open(MemoryStorage(life.storage.image()), life.options), promise, life.ever)
    for state in list(crash_states(life.storage.trace))[-8:]:
        check_promise(Journal.open(MemoryStorage(state.image), life.options), state.promised or Promise(), life.ever)
    check_promise(Journal.open(life.storage.kill(), life.options), promise, life.ever)


async def test_after_a_failed_flush_nothing_is_claimed_and_nothing_is_tried_again() -> None:
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(3)
    flushes = [entry for entry in life.storage.trace if not hasattr(entry, "value") and entry[0] == "fdatasync"]
    life.storage.faults.fail_at_call = life.storage.faults.calls + 2
    waiter = life.journal.when_durable(life.append(2))
    with pytest.raises(Refused) as caught:
        await waiter
    assert (caught.value.code, caught.value.status) == ("backend_unavailable", 503)
    assert isinstance(await life.journal.failed, StorageFailed)
    assert life.journal.durable_lsn == 3
    assert life.journal.refusal(essential=True).code == "backend_unavailable"
    with pytest.raises(StorageFailed):
        life.append(1)
    with pytest.raises(Refused):
        await life.journal.when_durable(4)
    await life.journal.close()
    after = [entry for entry in life.storage.trace if not hasattr(entry, "value") and entry[0] == "fdatasync"]
    assert after == flushes
    assert state_of(Journal.open(life.storage.kill(), life.options)) == life.history[:3]


async def test_a_restart_after_a_failed_flush_believes_the_disk_and_not_the_cache() -> None:
    life = Life(MemoryStorage())
    await life.open()
    await life.commit(3)
    life.storage.faults.fail_at_call = life.storage.faults.calls + 2
    with pytest.raises(Refused):
        await life.journal.when_durable(life.append(2))
    life.kill()
    await life.open()
    assert life.history == ["1-1", "1-2", "1-3"]
    await life.commit(1)
    for state in crash_states(life.storage.trace):
        journal = Journal.open(MemoryStorage(state.image), life.options)
        check_promise(journal, state.promised or Promise(), life.ever)


# Snapshots


async def test_a_snapshot_waits_until_what_it_holds_is_durable_and_ends_its_frame(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(life.storage, monkeypatch)
    life.append(1)
    await gate.wait()
    life.append(2)
    task = asyncio.ensure_future(life.journal.snapshot(3, 1_000, [life.history[:3]]))
    await asyncio.sleep(0)
    life.append(4)
    assert life.storage.names("snapshots") == []
    gate.opened.set()
    await task
    await (life.journal.when_durable(7) or asyncio.sleep(0))
    assert [(first, count) for first, count, _ in headers(life.storage)] == [(1, 1), (2, 2), (4, 4)]
    life.kill()
    journal = Journal.open(life.storage, life.options)
    assert journal.snapshot_lsn == 3
    assert state_of(journal) == life.history


async def test_a_failed_snapshot_is_an_alarm_and_the_log_goes_on(life: Life) -> None:
    await life.commit(3)

    def breaking() -> Iterator[object]:
        yield ["1-1"]
        raise StorageFailed("the disk says no")

    with pytest.raises(StorageFailed):
        await life.journal.snapshot(3, 1_000, breaking())
    assert life.journal.stats().snapshot_failures == 1
    assert life.storage.names("snapshots") == []
    await life.commit(1)
    await life.snapshot()
    assert life.journal.stats().snapshot_last.lsn == 4


async def test_a_snapshot_that_reads_back_damaged_gets_no_name(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.commit(3)
    read = life.storage.read

    def damaged(name: str, offset: int, length: int) -> bytes:
        content = read(name, offset, length)
        return content[:-1] + b"?" if name.startswith("snapshots/") else content

    monkeypatch.setattr(life.storage, "read", damaged)
    with pytest.raises(StorageFailed, match="reads back damaged"):
        await life.snapshot()
    assert life.storage.names("snapshots") == []


async def test_the_newest_snapshots_are_kept_and_the_log_since_the_oldest(life: Life) -> None:
    for _ in range(6):
        await life.commit(60, 60)
        await life.snapshot()
    names = life.storage.names("snapshots")
    assert [int(name[10:30]) for name in names] == [480, 600, 720]
    first = min(int(name[15:35]) for name in life.storage.names("log") if name.endswith(".seg"))
    assert 1 < first <= 481
    stats = life.journal.stats()
    assert stats.snapshots == 3
    assert stats.segments == len([n for n in life.storage.names("log") if n.endswith(".seg")])


async def test_nothing_of_the_log_is_pruned_before_there_are_enough_snapshots(life: Life) -> None:
    for _ in range(2):
        await life.commit(60, 60, 60)
        await life.snapshot()
    assert life.storage.names("log")[0].endswith("00000000000000000001.seg")


# Reading


async def test_durable_records_are_read_in_order_from_any_place_to_any_place(life: Life) -> None:
    await life.commit(1, 70, 80, 90)
    for from_lsn, to_lsn in ((1, None), (5, 5), (71, 152), (200, 10_000), (241, 241), (242, None)):
        read = [pair async for batch in life.journal.read_records(from_lsn, to_lsn) for pair in batch]
        last = min(to_lsn or 241, 241)
        assert [lsn for lsn, _ in read] == list(range(from_lsn, last + 1))
        assert [record.user_id for _, record in read] == life.history[from_lsn - 1 : last]


async def test_what_is_not_durable_is_not_read(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.commit(2)
    gate = Gate(life.storage, monkeypatch)
    waiter = life.journal.when_durable(life.append(1))
    await gate.wait()
    assert [lsn async for batch in life.journal.read_records(1) for lsn, _ in batch] == [1, 2]
    gate.opened.set()
    await waiter


async def test_reading_a_log_that_was_damaged_meanwhile_does_not_end_as_if_it_were_whole(life: Life) -> None:
    await life.commit(5, 6, 7)
    life.storage.open_file(life.storage.names("log")[0]).write(300, b"????")
    with pytest.raises(Damaged, match="cannot be read behind LSN"):
        async for _ in life.journal.read_records(1):
            pass


async def test_reading_what_was_pruned_is_refused_as_gone(life: Life) -> None:
    for _ in range(6):
        await life.commit(60, 60)
        await life.snapshot()
    with pytest.raises(Refused) as caught:
        async for _ in life.journal.read_records(1):
            pass
    assert (caught.value.code, caught.value.status) == ("gone", 410)


async def test_the_figures_add_up(life: Life) -> None:
    await life.commit(1, 2, 3)
    stats = life.journal.stats()
    assert (stats.last_lsn, stats.durable_lsn, stats.queued_records, stats.commits) == (6, 6, 0, 3)
    assert stats.committed_records == 6
    assert stats.written_bytes > 200
    assert stats.commit_seconds_sum >= stats.commit_seconds_last > 0
    assert stats.epoch == life.journal.epoch


async def test_many_callers_at_once_on_a_real_disk_all_find_their_records_again(tmp_path: Path) -> None:
    journal = Journal.open(DiskStorage(tmp_path), JournalOptions(segment_mib=0.25))
    await journal.start()

    async def caller(number: int) -> None:
        for turn in range(40):
            waiter = journal.when_durable(journal.append([Left(f"{number}", 1, turn)]))
            if waiter is not None:
                await waiter

    await asyncio.gather(*(caller(number) for number in range(32)))
    await journal.close()
    again = Journal.open(DiskStorage(tmp_path), JournalOptions(segment_mib=0.25))
    records = [record for _, record in again.replay()]
    assert len(records) == 32 * 40
    for number in range(32):
        assert [r.arrival for r in records if r.event_id == f"{number}"] == list(range(40))
    await again.close()


PROGRAM = """
import asyncio, pathlib, sys
from snapshots.journal import Journal, JournalOptions
from snapshots.storage import DiskStorage
from tests.snapshots.scenario import joined

async def main():
    journal = Journal.open(DiskStorage(pathlib.Path(sys.argv[1])), JournalOptions(segment_mib=1/16))
    await journal.start()
    while True:
        lsn = journal.append([joined(journal.last_lsn + n, f"{journal.last_lsn + n}") for n in (1, 2, 3)])
        await journal.when_durable(lsn)
        print(lsn, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_a_killed_process_acknowledged_is_on_the_real_disk(tmp_path: Path) -> None:
    acknowledged = 0
    for lines in (1, 40, 400):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            process.kill()
        journal = Journal.open(storage := DiskStorage(tmp_path), JournalOptions(segment_mib=1 / 16))
        assert journal.last_lsn >= acknowledged
        assert state_of(journal) == [str(lsn) for lsn in range(1, journal.last_lsn + 1)]
        storage.unlock()
