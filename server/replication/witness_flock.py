"""The witness on one machine: a file with the lease, and a lock that its holder keeps for as long as it lives.

Three files: FILE holds the lease as JSON and is only ever replaced whole; FILE.held is locked by the holder's process,
and the kernel lets go of it when that process ends, however it ends; FILE.lock is held for the moment of a swap. So
nothing has to be renewed and a dead primary is noticed at once. A process that is frozen keeps its lock: nobody takes
over from it until it is killed. The files are never removed, and lie on a file system of this machine: locks over a
network mean something else.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from engine.errors import BadConfiguration
from server.replication.witness import TIMEOUT_S, Lease, WitnessUnreachable, successor

T = TypeVar("T")

# Kinds of file systems that other machines share.
REMOTE = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "9p",
    "ceph",
    "afs",
    "lustre",
    "gfs2",
    "ocfs2",
    "virtiofs",
    "fuse.sshfs",
    "fuse.glusterfs",
}
_POLL_S = 0.002


class _Row(msgspec.Struct, frozen=True):
    """What stands in FILE."""

    cluster_id: str
    version: int
    term: int
    holder: str
    url: str
    standby: str | None


def open(url: str, cluster_id: bytes, node_id: str) -> "FlockWitness":
    """Return the witness at flock:/path; raises BadConfiguration where it cannot work."""
    path = Path(urlsplit(url).path)
    if not path.is_absolute() or urlsplit(url).netloc:
        raise BadConfiguration("witness: must be a file by its whole path, as in flock:/run/stanchion/lease")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadConfiguration(f"witness: {path.parent} must be a folder in which this process may write")
    if (kind := file_system_of(path.parent)) in REMOTE:
        raise BadConfiguration(
            f"witness: {path.parent} is on {kind}, shared with other machines; flock needs a local one"
        )
    return FlockWitness(path, cluster_id, node_id)


def file_system_of(folder: Path) -> str:
    """Return the kind of file system a folder is on, "" where that cannot be told."""
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[2] == name:
            return line.partition(" - ")[2].split()[0]
    return ""


class FlockWitness:
    """A file, and a lock beside it."""

    needs_renewal = False

    def __init__(self, path: Path, cluster_id: bytes, node_id: str) -> None:
        self._path = path
        self._cluster_id = cluster_id.hex()
        self._node_id = node_id
        self._held: int | None = None

    def describe(self) -> str:
        """Say what a lock cannot do."""
        return (
            f"A lock on {self._path}: it notices at once when a process on this machine ends, "
            "never takes over from one that is only frozen, and does not survive the machine."
        )

    async def read(self) -> Lease | None:
        """Return what stands in the file."""
        return await self._work(self._load)

    async def swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        """Replace the file; a holder gets the lock with it, and whoever no longer is one lets go of it."""
        return await self._work(lambda: self._swap(seen, wanted))

    async def is_abandoned(self, seen: Lease, unchanged_s: float, lease_s: float) -> bool:
        """Return whether nobody holds the lock."""
        return await self._work(self._is_free)

    async def close(self) -> None:
        """Let go of the lock."""
        self._let_go()

    async def _work(self, operation: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.to_thread(operation)
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            raise WitnessUnreachable(f"{self._path}: {error or 'no answer in time'}") from None

    def _load(self) -> Lease | None:
        try:
            row = msgspec.json.decode(self._path.read_bytes(), type=_Row)
        except FileNotFoundError:
            return None
        if row.cluster_id != self._cluster_id:
            raise BadConfiguration(
                f"witness: {self._path} keeps the lease of another line; give each a file of its own"
            )
        return Lease(row.version, row.term, row.holder, row.url, row.standby)

    def _swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        with self._alone():
            found = self._load()
            if (found and found.version) != (seen and seen.version):
                return None
            stored = successor(seen, wanted)
            was_held = self._held is not None
            if stored.holder == self._node_id and not self._take():
                return None
            try:
                self._store(stored)
            except BaseException:
                if not was_held:
                    self._let_go()
                raise
            if stored.holder != self._node_id:
                self._let_go()
            return stored

    def _store(self, lease: Lease) -> None:
        """Replace the file whole, and on the disk."""
        temporary = self._beside(".new")
        row = _Row(self._cluster_id, *lease)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(row) + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _is_free(self) -> bool:
        with self._alone():
            if self._held is not None:
                return False
            if not self._take():
                return False
            self._let_go()
            return True

    def _take(self) -> bool:
        """Lock FILE.held for this process; only ever tried while alone, so that a try is never taken for a holder."""
        if self._held is None:
            descriptor = os.open(self._beside(".held"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            self._held = descriptor
        return True

    def _let_go(self) -> None:
        descriptor, self._held = self._held, None
        if descriptor is not None:
            os.close(descriptor)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold FILE.lock; gives up when its caller has."""
        deadline_s = time.monotonic() + TIMEOUT_S
        descriptor = os.open(self._beside(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline_s:
                    raise TimeoutError("another process holds it for too long")
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)
