"""The one door through which log and snapshots reach a disk.

Everything that recovery relies on is a promise of this interface, so it is kept small enough to be told in
full, and `memory_storage` implements it a second time with every freedom a real disk has after a power cut:

* `write` puts all bytes or raises; they are durable only after `fdatasync` (or `fsync`) of that file.
* `truncate` is durable only after `fsync`.
* A name made, renamed or removed is durable only after `sync_directory` of its folder.
* `rename` is atomic and replaces; it does not make the content of the file durable.
* `reserve` makes a file of zeros whose space is really allocated, or makes an open file that long with zeros, and
  answers False where there is no space left. It is the only place where a full disk is an answer and not a failure.
* `drop_cache` makes the next reads come from the disk: after a failed flush the page cache shows bytes that
  are not there.

Names are relative, with `/` between folder and file. Every OSError becomes StorageFailed here, naming the
file; nothing above this module knows an errno.
"""

import asyncio
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from engine.errors import Locked, StorageFailed

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
LOCK_NAME = "lock"


class StorageFile(Protocol):
    """A file open for writing at any offset."""

    def write(self, offset: int, data: bytes) -> None: ...
    def truncate(self, length: int) -> None: ...
    def reserve(self, length: int) -> bool: ...
    def fdatasync(self) -> None: ...
    def fsync(self) -> None: ...
    def close(self) -> None: ...


class SliceWriter(Protocol):
    """A new file written from front to back by the event loop, which never waits for the disk."""

    async def write(self, data: bytes) -> None: ...
    async def fsync(self) -> None: ...
    async def close(self) -> None: ...


class Storage(Protocol):
    """A data folder; see the top of this module for what each call promises."""

    @property
    def place(self) -> str:
        """Where this is, for people."""
        ...

    def lock(self) -> None: ...
    def unlock(self) -> None: ...
    def make_folder(self, folder: str) -> None: ...
    def names(self, folder: str) -> list[str]: ...
    def size_bytes(self, name: str) -> int: ...
    def read(self, name: str, offset: int, length: int) -> bytes: ...
    def drop_cache(self, name: str) -> None: ...
    def reserve(self, name: str, length: int) -> bool: ...
    def create(self, name: str) -> StorageFile: ...
    def open_file(self, name: str) -> StorageFile: ...
    async def create_slices(self, name: str) -> SliceWriter: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def sync_directory(self, folder: str) -> None: ...


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError into StorageFailed that says what was attempted on which path."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"cannot {action} {path}: {error.strerror or error}") from error


def _private(path: str | Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable_folder(path: Path) -> None:
    """Make a folder and those above it, each name flushed, so that a power cut does not take the whole away."""
    if not path.is_dir():
        _make_durable_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)


class DiskFile:
    """A StorageFile on a real disk."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn an OSError into StorageFailed under the name the file has now; it may have been renamed."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self._path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            with storage_errors(action, self._path):
                raise error

    def write(self, offset: int, data: bytes) -> None:
        with self._errors("write"):
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                offset += written
                rest = rest[written:]

    def truncate(self, length: int) -> None:
        with self._errors("truncate"):
            os.ftruncate(self._descriptor, length)

    def reserve(self, length: int) -> bool:
        """Allocate the space up to `length`; what is there stays. False, and nothing taken, where there is none."""
        with self._errors("reserve"):
            size_bytes = os.fstat(self._descriptor).st_size
            try:
                os.posix_fallocate(self._descriptor, 0, length)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                os.ftruncate(self._descriptor, size_bytes)
                return False
        return True

    def fdatasync(self) -> None:
        with self._errors("flush"):
            os.fdatasync(self._descriptor)

    def fsync(self) -> None:
        with self._errors("flush"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        with self._errors("close"):
            os.close(self._descriptor)


class DiskSliceWriter:
    """A SliceWriter on a real disk: aiofiles hands each slice to a thread."""

    def __init__(self, path: Path, file: AsyncBufferedIOBase) -> None:
        self._path = path
        self._file = file

    async def write(self, data: bytes) -> None:
        with storage_errors("write", self._path):
            await self._file.write(data)

    async def fsync(self) -> None:
        with storage_errors("flush", self._path):
            await self._file.flush()
            await asyncio.to_thread(os.fsync, self._file.fileno())

    async def close(self) -> None:
        with storage_errors("close", self._path):
            await self._file.close()


class DiskStorage:
    """A Storage in the folder `root`, which is made when missing; folders are 0700 and files 0600."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock: int | None = None
        with storage_errors("make the folder", root):
            _make_durable_folder(root)

    @property
    def place(self) -> str:
        return str(self._root)

    def lock(self) -> None:
        """Take the folder for this process; raises Locked where another one has it."""
        path = self._root / LOCK_NAME
        with storage_errors("open", path):
            descriptor = _private(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise Locked(f"another process holds the data folder {self._root}") from error
        self._lock = descriptor

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def make_folder(self, folder: str) -> None:
        """Make a folder directly below the root, unless it is there."""
        path = self._root / folder
        with storage_errors("make the folder", path):
            path.mkdir(mode=0o700, exist_ok=True)

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in a folder, each with the folder in front; none if it is missing."""
        path = self._root / folder
        with storage_errors("list", path):
            if not path.is_dir():
                return []
            return sorted(f"{folder}/{entry.name}" for entry in os.scandir(path) if entry.is_file())

    def size_bytes(self, name: str) -> int:
        with storage_errors("stat", self._root / name):
            return (self._root / name).stat().st_size

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, fewer only where the file ends."""
        path = self._root / name
        with storage_errors("read", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return self._read_all(descriptor, offset, length)
            finally:
                os.close(descriptor)

    def _read_all(self, descriptor: int, offset: int, length: int) -> bytes:
        chunks: list[bytes] = []
        while length > 0:
            chunk = os.pread(descriptor, length, offset)
            if not chunk:
                break
            chunks.append(chunk)
            offset += len(chunk)
            length -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def drop_cache(self, name: str) -> None:
        path = self._root / name
        with storage_errors("open", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def reserve(self, name: str, length: int) -> bool:
        path = self._root / name
        with storage_errors("reserve", path):
            try:
                descriptor = _private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                try:
                    os.posix_fallocate(descriptor, 0, length)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                path.unlink(missing_ok=True)
                return False
        return True

    def create(self, name: str) -> DiskFile:
        path = self._root / name
        with storage_errors("create", path):
            return DiskFile(path, _private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    def open_file(self, name: str) -> DiskFile:
        path = self._root / name
        with storage_errors("open", path):
            return DiskFile(path, _private(path, os.O_RDWR))

    async def create_slices(self, name: str) -> DiskSliceWriter:
        path = self._root / name
        with storage_errors("create", path):
            return DiskSliceWriter(path, await aiofiles.open(path, "wb", opener=_private))

    def rename(self, old: str, new: str) -> None:
        with storage_errors("rename", self._root / old):
            os.rename(self._root / old, self._root / new)

    def unlink(self, name: str) -> None:
        with storage_errors("remove", self._root / name):
            os.unlink(self._root / name)

    def sync_directory(self, folder: str) -> None:
        path = self._root / folder
        with storage_errors("flush the folder", path):
            _sync_folder(path)
