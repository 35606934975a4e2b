"""What an operator does: verify, inspect, back up and restore, also while a daemon writes."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import Damaged, StorageFailed, UsageError
from snapshots.backup import backup, copy_journal, inspect, restore, verify
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.storage import DiskStorage
from snapshots.wal import RESTARTS_PER_TERM
from tests.snapshots.scenario import SMALL, Life, state_of

OPTIONS = JournalOptions(**SMALL)


async def lived(storage: object) -> Life:
    life = Life(storage)  # type: ignore[arg-type]
    await life.open()
    for count in (3, 150, 40):
        await life.commit(count)
        await life.snapshot()
    await life.commit(7, 120, 9)
    return life


class DiskLife(DiskStorage):
    """A real disk that has a place for promises, as the memory twin has."""

    def mark(self, value: object) -> None:
        """Promise to nobody."""


async def test_a_whole_folder_verifies_and_nothing_in_it_is_changed() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    before = life.storage.image()
    report = verify(life.storage)
    assert report.problems == ()
    assert (report.snapshot_lsn, report.last_lsn, report.records) == (193, 329, 136)
    assert (report.snapshots, report.epoch) == (3, RESTARTS_PER_TERM)
    assert life.storage.image() == before


async def test_verifying_tells_every_problem_and_does_not_stop_at_the_first() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    for name in (life.storage.names("snapshots")[0], *life.storage.names("log")[:-1]):
        life.storage.open_file(name).write(150, b"????")
    problems = "\n".join(verify(life.storage).problems)
    for name in (life.storage.names("snapshots")[0], *life.storage.names("log")[:-1]):
        assert name in problems


async def test_every_frame_is_shown_with_what_it_holds() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    frames = list(inspect(life.storage))
    assert sum(count for frame in frames for _, count in frame.kinds) == 329
    assert frames[0].kinds == (("joined", 3),)
    assert (frames[-1].first_lsn, frames[-1].last_lsn, frames[-1].durable_lsn) == (330, 329, 329)


async def test_a_backup_of_a_running_journal_is_a_folder_to_start_from(tmp_path: Path) -> None:
    life = await lived(DiskLife(tmp_path / "data"))
    seen: list[tuple[int, int]] = []
    info = backup(DiskStorage(tmp_path / "data"), tmp_path / "backup", lambda done, total: seen.append((done, total)))
    await life.commit(5)
    await life.close()
    assert (info.snapshot_lsn, info.last_lsn, info.records) == (193, 329, 136)
    assert seen[-1][0] == seen[-1][1] > 0
    journal = Journal.open(DiskStorage(tmp_path / "backup"), OPTIONS)
    assert state_of(journal) == life.history[:329]


@pytest.mark.slow
async def test_backups_taken_while_records_pour_in_are_all_whole(tmp_path: Path) -> None:
    life = await lived(DiskLife(tmp_path / "data"))
    stop = False

    async def pour() -> None:
        while not stop:
            await life.commit(17)

    pouring = asyncio.ensure_future(pour())
    for number in range(5):
        info = await asyncio.to_thread(backup, DiskStorage(tmp_path / "data"), tmp_path / f"{number}")
        journal = Journal.open(DiskStorage(tmp_path / f"{number}"), OPTIONS)
        assert state_of(journal) == life.history[: info.last_lsn]
    stop = True
    await pouring
    await life.close()


@pytest.mark.parametrize("to_lsn", [193, 194, 200, 201, 250, 329, None])
async def test_a_backup_is_restored_up_to_any_record_and_begins_a_new_term(tmp_path: Path, to_lsn: int | None) -> None:
    life = await lived(DiskLife(tmp_path / "data"))
    await life.close()
    backup(DiskStorage(tmp_path / "data"), tmp_path / "backup")
    info = restore(tmp_path / "backup", tmp_path / "restored", to_lsn)
    assert info.last_lsn == (to_lsn or 329)
    journal = Journal.open(DiskStorage(tmp_path / "restored"), OPTIONS)
    assert state_of(journal) == life.history[: info.last_lsn]
    assert journal.epoch == 2 * RESTARTS_PER_TERM + 1
    assert journal.found.previous_epoch <= RESTARTS_PER_TERM
    assert not journal.found.alarms


async def test_a_restore_outside_of_what_the_backup_holds_is_refused(tmp_path: Path) -> None:
    life = await lived(DiskLife(tmp_path / "data"))
    await life.close()
    for number, to_lsn in enumerate((192, 330)):
        with pytest.raises(UsageError, match="it reaches from 193 to 329"):
            restore(tmp_path / "data", tmp_path / f"restored-{number}", to_lsn)


async def test_nothing_is_copied_over_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    for target in ("full", "file"):
        with pytest.raises(UsageError, match="not an empty folder"):
            backup(MemoryStorage(), tmp_path / target)
    with pytest.raises(UsageError, match="is not a backup"):
        restore(tmp_path / "full", tmp_path / "new")


async def test_a_damaged_folder_is_not_backed_up() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    name = [name for name in life.storage.names("log") if name.endswith(".seg")][-1]
    life.storage.open_file(name).write(100, b"????")
    with pytest.raises(Damaged, match=name):
        copy_journal(life.storage, MemoryStorage())


async def test_a_copy_that_stops_half_way_is_refused_by_everybody() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    target = MemoryStorage()
    copy_journal(life.storage, target)
    calls = target.faults.calls
    for call in range(5, calls):
        target = MemoryStorage()
        target.faults.fail_at_call = call
        with pytest.raises(StorageFailed):
            copy_journal(life.storage, target)
        target.faults.fail_at_call = None
        if "log/incomplete" in target.names("log"):
            with pytest.raises(Damaged, match="was not finished"):
                Journal.open(target, OPTIONS)


async def test_a_copy_that_reads_back_otherwise_is_no_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    life = await lived(MemoryStorage())
    await life.close()
    target = MemoryStorage()
    read = target.read

    def damaged(name: str, offset: int, length: int) -> bytes:
        content = bytearray(read(name, offset, length))
        if len(content) > 500:
            content[400] ^= 1
        return bytes(content)

    monkeypatch.setattr(target, "read", damaged)
    with pytest.raises((StorageFailed, Damaged)):
        copy_journal(life.storage, target)
    assert "log/incomplete" in target.names("log")


async def test_a_folder_damaged_below_its_snapshot_is_backed_up_all_the_same() -> None:
    life = await lived(MemoryStorage())
    await life.close()
    life.storage.open_file(life.storage.names("log")[0]).write(100, b"????")
    target = MemoryStorage()
    info = copy_journal(life.storage, target)
    assert info.last_lsn == 329
    assert state_of(Journal.open(target, OPTIONS)) == life.history
