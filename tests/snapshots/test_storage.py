"""One suite for the real disk and for the memory twin, so that the twin is held to the real thing."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import Locked, StorageFailed
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.storage import DiskStorage, Storage
from tests.snapshots.scenario import SMALL, joined

Twin = Callable[[], Storage]


@pytest.fixture(params=["disk", "memory"])
def twin(request: pytest.FixtureRequest, tmp_path: Path) -> Twin:
    """Return a maker of storages that all stand for the same folder."""
    if request.param == "disk":
        return lambda: DiskStorage(tmp_path / "data")
    first = MemoryStorage()
    return lambda: MemoryStorage(shared=first._shared)


@pytest.fixture
def storage(twin: Twin) -> Storage:
    storage = twin()
    storage.make_folder("log")
    return storage


def write(storage: Storage, name: str, content: bytes) -> None:
    file = storage.create(name)
    file.write(0, content)
    file.fsync()
    file.close()


def test_what_was_written_is_read_in_any_part(storage: Storage) -> None:
    write(storage, "log/a", b"0123456789")
    assert storage.read("log/a", 0, 100) == b"0123456789"
    assert storage.read("log/a", 3, 4) == b"3456"
    assert storage.read("log/a", 10, 4) == b""
    assert storage.size_bytes("log/a") == 10


def test_a_write_behind_the_end_leaves_zeros_between(storage: Storage) -> None:
    file = storage.create("log/a")
    file.write(4, b"x")
    file.fdatasync()
    file.close()
    assert storage.read("log/a", 0, 9) == b"\0\0\0\0x"


def test_a_file_is_cut_and_grown_to_a_length(storage: Storage) -> None:
    write(storage, "log/a", b"0123456789")
    file = storage.open_file("log/a")
    file.truncate(3)
    file.truncate(5)
    file.fsync()
    file.close()
    assert storage.read("log/a", 0, 9) == b"012\0\0"


def test_creating_a_file_that_is_there_empties_it(storage: Storage) -> None:
    write(storage, "log/a", b"0123456789")
    storage.create("log/a").close()
    assert storage.size_bytes("log/a") == 0


def test_reserving_makes_a_file_of_zeros(storage: Storage) -> None:
    write(storage, "log/a", b"0123456789")
    assert storage.reserve("log/a", 5000)
    assert storage.read("log/a", 0, 6000) == bytes(5000)


def test_an_open_file_can_be_made_longer_and_keeps_what_is_in_it(storage: Storage) -> None:
    write(storage, "log/a", b"0123456789")
    file = storage.open_file("log/a")
    assert file.reserve(5000)
    assert file.reserve(100)
    file.close()
    assert storage.read("log/a", 0, 6000) == b"0123456789" + bytes(4990)


def test_a_renamed_file_is_still_written_through_the_open_handle(storage: Storage) -> None:
    write(storage, "log/b", b"old")
    file = storage.create("log/a")
    storage.rename("log/a", "log/b")
    file.write(0, b"new content")
    file.close()
    assert storage.names("log") == ["log/b"]
    assert storage.read("log/b", 0, 100) == b"new content"


def test_names_are_sorted_and_a_missing_folder_has_none(storage: Storage) -> None:
    for name in ("log/c", "log/a", "log/b"):
        write(storage, name, b"")
    storage.unlink("log/b")
    storage.sync_directory("log")
    storage.sync_directory("")
    assert storage.names("log") == ["log/a", "log/c"]
    assert storage.names("missing") == []


def test_making_a_folder_twice_is_fine(storage: Storage) -> None:
    storage.make_folder("log")


@pytest.mark.parametrize(
    "attempt",
    [
        lambda s: s.read("log/missing", 0, 1),
        lambda s: s.size_bytes("log/missing"),
        lambda s: s.open_file("log/missing"),
        lambda s: s.rename("log/missing", "log/other"),
        lambda s: s.unlink("log/missing"),
        lambda s: s.drop_cache("log/missing"),
        lambda s: s.create("missing/file"),
    ],
)
def test_what_is_missing_is_a_storage_failure_that_names_it(
    storage: Storage, attempt: Callable[[Storage], object]
) -> None:
    with pytest.raises(StorageFailed, match="missing"):
        attempt(storage)


def test_a_folder_is_held_by_one_at_a_time(twin: Twin) -> None:
    first, second = twin(), twin()
    first.lock()
    with pytest.raises(Locked, match="another process holds the data folder"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


async def test_slices_are_written_from_front_to_back(storage: Storage) -> None:
    writer = await storage.create_slices("log/s")
    for part in (b"one ", b"two ", b"x" * 300_000):
        await writer.write(part)
    await writer.fsync()
    await writer.close()
    assert storage.read("log/s", 0, 1 << 20) == b"one two " + b"x" * 300_000


def test_what_was_flushed_is_there_after_the_cache_was_dropped(storage: Storage) -> None:
    write(storage, "log/a", b"kept")
    storage.drop_cache("log/a")
    assert storage.read("log/a", 0, 9) == b"kept"


def test_after_a_failed_flush_the_cache_lies_until_it_is_dropped() -> None:
    storage = MemoryStorage()
    storage.make_folder("log")
    file = storage.create("log/a")
    file.write(0, b"lost")
    storage.faults.fail_at_call = storage.faults.calls + 1
    with pytest.raises(StorageFailed):
        file.fdatasync()
    file.fdatasync()
    assert storage.read("log/a", 0, 9) == b"lost"
    storage.drop_cache("log/a")
    assert storage.read("log/a", 0, 9) == b""


def test_folders_are_private_and_so_are_files(tmp_path: Path) -> None:
    storage = DiskStorage(tmp_path / "data")
    storage.make_folder("log")
    storage.lock()
    write(storage, "log/a", b"")
    assert storage.reserve("log/b", 10)
    for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    storage.unlock()


def test_a_second_process_is_told_which_folder_is_held(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from snapshots.journal import *; from snapshots.storage import *;"
        "Journal.open(DiskStorage(pathlib.Path(sys.argv[1])), JournalOptions(segment_mib=1))"
    )
    journal = Journal.open(DiskStorage(tmp_path), JournalOptions(segment_mib=1))
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "Locked" in run.stderr
    assert str(tmp_path) in run.stderr
    del journal


@pytest.mark.parametrize("most", [1, 7, 100])
def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:most], at))
    storage = DiskStorage(tmp_path)
    write(storage, "a", bytes(range(256)))
    assert storage.read("a", 0, 999) == bytes(range(256))


def test_short_reads_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = DiskStorage(tmp_path)
    write(storage, "a", bytes(range(256)))
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: whole(fd, min(length, 10), at))
    assert storage.read("a", 5, 200) == bytes(range(5, 205))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_answer_only_where_space_is_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    storage = DiskStorage(tmp_path)
    file = storage.create("a")
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(os, "pwrite", full)
    assert storage.reserve("b", 100) is False
    assert not (tmp_path / "b").exists()
    assert file.reserve(100) is False
    assert (tmp_path / "a").stat().st_size == 0
    with pytest.raises(StorageFailed):
        file.write(0, b"x")
    file.close()


def test_an_error_other_than_full_fails_a_reservation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(StorageFailed, match="cannot reserve"):
        DiskStorage(tmp_path).reserve("b", 100)
    with pytest.raises(StorageFailed, match="cannot reserve"):
        DiskStorage(tmp_path).create("a").reserve(100)


def test_a_failure_names_the_file_as_it_is_called_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    storage = DiskStorage(tmp_path)
    file = storage.create("before")
    storage.rename("before", "after")
    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StorageFailed, match=r"cannot flush .*/after: Input/output error"):
        file.fdatasync()
    file.close()


async def a_small_life(root: Path) -> None:
    journal = Journal.open(DiskStorage(root), JournalOptions(**SMALL))
    await journal.start()
    waiter = journal.when_durable(journal.append([joined(1, "a")]))
    assert waiter is not None
    await waiter
    await journal.snapshot(1, 1, ["state"])
    await journal.close()


async def test_the_real_disk_is_really_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report) -> None:
    calls: list[tuple[str, str]] = []

    def spy(name: str) -> None:
        original = getattr(os, name)

        def called(*arguments: object) -> object:
            target = arguments[0]
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
            calls.append((name, os.path.relpath(path, tmp_path)))
            return original(*arguments)

        monkeypatch.setattr(os, name, called)

    for name in ("fdatasync", "fsync", "rename"):
        spy(name)
    await a_small_life(tmp_path / "data")
    segment, snapshot = "0000000001-00000000000000000001.seg", "00000000000000000001.snap"
    assert calls == [
        ("fsync", "."),
        ("fsync", "data"),
        ("fsync", "data/log/0000000001.reserved"),
        ("rename", "data/log/0000000001.reserved"),
        ("fsync", "data/log"),
        ("fdatasync", f"data/log/{segment}"),
        ("fsync", f"data/snapshots/{snapshot}.writing"),
        ("rename", f"data/snapshots/{snapshot}.writing"),
        ("fsync", "data/snapshots"),
        ("fdatasync", f"data/log/{segment}"),
        ("fsync", f"data/log/{segment}"),
    ]
    report(f"calls of the system for one join, one snapshot and an orderly end: {len(calls)}")
