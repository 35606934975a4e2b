"""What the journal does when it must not or cannot go on: full queues, full disks, failing disks, sudden ends."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import Refused, StorageFailed
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage, crash_states
from snapshots.storage import DiskStorage
from tests.snapshots.scenario import SMALL, Gate, Life, Promise, check_promise, state_of, until

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
