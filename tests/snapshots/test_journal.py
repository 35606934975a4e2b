"""The journal's promises to its callers: order, durability, refusals, and an end that claims nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.errors import BadConfiguration, Damaged, Locked, Refused, StorageFailed
from engine.records import Left
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.scan import frame_headers_after
from snapshots.storage import DiskStorage
from snapshots.wal import RESTARTS_PER_TERM
from tests.snapshots.scenario import SMALL, Gate, Life, joined, state_of, until


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


async def test_a_journal_that_was_only_opened_is_closed_without_a_trace_of_disorder() -> None:
    storage = MemoryStorage()
    await Journal.open(storage, JournalOptions(**SMALL)).close()
    journal = Journal.open(storage, JournalOptions(**SMALL))
    assert (journal.last_lsn, journal.found.torn_bytes, journal.found.alarms) == (0, 0, ())
