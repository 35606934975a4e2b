"""A Storage in memory, for tests: it can fail on purpose, remembers all that was done, and knows every crash.

It behaves like `DiskStorage` (one suite runs on both) on top of `disk_model`. Each change goes into a trace;
`crash_states` replays a trace and yields, after every single operation, each state that a power cut at that
moment may leave. `marks` in the trace tell what had been promised by then.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from engine.errors import Locked, StorageFailed
from snapshots.disk_model import DiskModel, Image


@dataclass(frozen=True, slots=True)
class Mark:
    """A promise made at this point of the trace; what `value` means is its writer's affair."""

    value: object


Operation = tuple[str, tuple[object, ...]]


@dataclass(slots=True)
class Faults:
    """What is to go wrong: the n-th call of all (from 1) fails; the space is limited; the process is dead, or dies
    just before the next call named `die_before` or in the n-th of all."""

    fail_at_call: int | None = None
    die_at_call: int | None = None
    capacity_bytes: int | None = None
    die_before: str | None = None
    dead: bool = False
    calls: int = 0
    failed_call: str = ""


@dataclass(slots=True)
class _Shared:
    """What outlives a killed process: the disk, the trace, and who holds the lock."""

    model: DiskModel
    trace: list[Operation | Mark] = field(default_factory=list)
    mutex: threading.RLock = field(default_factory=threading.RLock)
    holder: object = None


class MemoryFile:
    """A StorageFile of the memory twin; it stays with its file when the name changes."""

    def __init__(self, storage: "MemoryStorage", inode: int) -> None:
        self._storage = storage
        self._inode = inode

    def write(self, offset: int, data: bytes) -> None:
        self._storage.perform("write", self._inode, offset, bytes(data))

    def truncate(self, length: int) -> None:
        self._storage.perform("truncate", self._inode, length)

    def reserve(self, length: int) -> bool:
        return self._storage.extend(self._inode, length)

    def fdatasync(self) -> None:
        self._storage.perform("fdatasync", self._inode)

    def fsync(self) -> None:
        self._storage.perform("fsync", self._inode)

    def close(self) -> None:
        self._storage.perform("close", self._inode)


class MemorySliceWriter:
    """A SliceWriter of the memory twin."""

    def __init__(self, file: MemoryFile) -> None:
        self._file = file
        self._offset = 0

    async def write(self, data: bytes) -> None:
        self._file.write(self._offset, data)
        self._offset += len(data)

    async def fsync(self) -> None:
        self._file.fsync()

    async def close(self) -> None:
        self._file.close()


_APPLY: dict[str, Callable[..., object]] = {
    "make_folder": lambda model, folder: model.folders.add(folder),
    "create": DiskModel.create,
    "write": lambda model, inode, offset, data: model.files[inode].write(offset, data),
    "truncate": lambda model, inode, length: model.files[inode].truncate(length),
    "fdatasync": lambda model, inode: model.files[inode].flush(with_size=False),
    "fsync": lambda model, inode: model.files[inode].flush(with_size=True),
    "close": lambda model, inode: None,
    "lose": lambda model, inode: model.files[inode].lose(),
    "drop_cache": lambda model, name: model.file(name).drop_cache(),
    "rename": DiskModel.rename,
    "unlink": DiskModel.unlink,
    "sync_directory": DiskModel.sync_directory,
}
FLUSHES = frozenset({"fdatasync", "fsync"})


class MemoryStorage:
    """A Storage that holds everything in memory, begun from an image; usable from several threads."""

    def __init__(self, image: Image = Image(), shared: _Shared | None = None) -> None:  # noqa: B008, RUF100
        self._shared = shared or _Shared(DiskModel(image))
        self.faults = Faults()

    @property
    def place(self) -> str:
        return "memory"

    @property
    def trace(self) -> list[Operation | Mark]:
        return self._shared.trace

    def mark(self, value: object) -> None:
        """Note in the trace that something was promised."""
        with self._shared.mutex:
            self._shared.trace.append(Mark(value))

    def image(self) -> Image:
        """Return what a process would see now."""
        with self._shared.mutex:
            return self._shared.model.image()

    def crash_image(self, random: Random) -> Image:
        """Return one of the states that a power cut at this moment may leave."""
        with self._shared.mutex:
            return self._shared.model.crash_image(random)

    def kill(self) -> "MemoryStorage":
        """Kill the process: nothing it still does has an effect. Return the storage for the next one."""
        with self._shared.mutex:
            self.faults.dead = True
            self._shared.holder = None
            return MemoryStorage(shared=self._shared)

    def perform(self, action: str, *arguments: object) -> object:
        """Do one operation on the model and remember it, unless it is to fail."""
        with self._shared.mutex:
            try:
                self._count(action)
            except StorageFailed:
                self._fail_halfway(action, arguments)
                raise
            self._shared.trace.append((action, arguments))
            return _APPLY[action](self._shared.model, *arguments)

    def _count(self, action: str) -> None:
        """Count a call; raises StorageFailed if it is the one to fail."""
        faults = self.faults
        faults.calls += 1
        faults.dead = faults.dead or action == faults.die_before or faults.calls == faults.die_at_call
        if faults.dead:
            raise StorageFailed("this process was killed")
        if faults.calls == faults.fail_at_call:
            faults.failed_call = action
            raise StorageFailed(f"cannot {action}: injected error {errno.errorcode[errno.EIO]}")

    def _fail_halfway(self, action: str, arguments: tuple[object, ...]) -> None:
        """Let a failing call do the worst it may: half a write; a flush after which the data is lost."""
        if self.faults.dead and self.faults.calls != self.faults.die_at_call:
            return
        follow: Operation | None = None
        if action == "write":
            inode, offset, data = arguments
            assert isinstance(data, bytes)
            follow = ("write", (inode, offset, data[: len(data) // 2]))
        elif action in FLUSHES and not self.faults.dead:
            follow = ("lose", arguments)
        if follow is not None:
            self._shared.trace.append(follow)
            _APPLY[follow[0]](self._shared.model, *follow[1])

    def _existing(self, action: str, name: str) -> int:
        with self._shared.mutex:
            if name not in self._shared.model.names:
                raise StorageFailed(f"cannot {action} memory/{name}: No such file or directory")
            return self._shared.model.names[name]

    def lock(self) -> None:
        with self._shared.mutex:
            self._count("lock")
            if self._shared.holder is not None:
                raise Locked("another process holds the data folder memory")
            self._shared.holder = self

    def unlock(self) -> None:
        with self._shared.mutex:
            if self._shared.holder is self:
                self._shared.holder = None

    def make_folder(self, folder: str) -> None:
        self.perform("make_folder", folder)

    def names(self, folder: str) -> list[str]:
        with self._shared.mutex:
            self._count("names")
            return sorted(name for name in self._shared.model.names if name.rpartition("/")[0] == folder)

    def size_bytes(self, name: str) -> int:
        with self._shared.mutex:
            self._count("size_bytes")
            return len(self._shared.model.files[self._existing("stat", name)].cached)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._shared.mutex:
            self._count("read")
            return bytes(self._shared.model.files[self._existing("read", name)].cached[offset : offset + length])

    def drop_cache(self, name: str) -> None:
        self._existing("open", name)
        self.perform("drop_cache", name)

    def reserve(self, name: str, length: int) -> bool:
        with self._shared.mutex:
            used = sum(len(self._shared.model.files[inode].cached) for inode in self._shared.model.names.values())
            if self.faults.capacity_bytes is not None and used + length > self.faults.capacity_bytes:
                self._count("reserve")
                return False
            inode = self.perform("create", name)
            self.perform("truncate", inode, length)
            return True

    def extend(self, inode: int, length: int) -> bool:
        """Make a file at least so long, unless that is more than there is room for."""
        with self._shared.mutex:
            files = self._shared.model.files
            used = sum(len(files[inode].cached) for inode in self._shared.model.names.values())
            grown = length - len(files[inode].cached)
            if self.faults.capacity_bytes is not None and used + grown > self.faults.capacity_bytes:
                self._count("reserve")
                return False
            if grown > 0:
                self.perform("truncate", inode, length)
            return True

    def create(self, name: str) -> MemoryFile:
        folder = name.rpartition("/")[0]
        if folder and folder not in self._shared.model.folders:
            raise StorageFailed(f"cannot create memory/{name}: No such file or directory")
        inode = self.perform("create", name)
        assert isinstance(inode, int)
        return MemoryFile(self, inode)

    def open_file(self, name: str) -> MemoryFile:
        with self._shared.mutex:
            self._count("open_file")
            return MemoryFile(self, self._existing("open", name))

    async def create_slices(self, name: str) -> MemorySliceWriter:
        return MemorySliceWriter(self.create(name))

    def rename(self, old: str, new: str) -> None:
        self._existing("rename", old)
        self.perform("rename", old, new)

    def unlink(self, name: str) -> None:
        self._existing("remove", name)
        self.perform("unlink", name)

    def sync_directory(self, folder: str) -> None:
        self.perform("sync_directory", folder)


@dataclass(frozen=True, slots=True)
class CrashState:
    """A state a crash may leave: after which operation of the trace, and what had been promised by then."""

    step: int
    promised: object
    image: Image


def crash_states(trace: list[Operation | Mark], image: Image = Image()) -> Iterator[CrashState]:  # noqa: B008, RUF100
    """Yield each distinct state that a crash after any operation of a trace may leave."""
    model = DiskModel(image)
    promised: object = None
    seen: set[tuple[object, Image]] = set()
    for step, entry in enumerate(trace):
        if isinstance(entry, Mark):
            promised = entry.value
        else:
            _APPLY[entry[0]](model, *entry[1])
        for crashed in model.crash_images():
            if (promised, crashed) not in seen:
                seen.add((promised, crashed))
                yield CrashState(step, promised, crashed)
