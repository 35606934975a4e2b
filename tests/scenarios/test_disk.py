"""A disk that is really full, and a disk that really fails: what the daemon goes on doing, and what it never claims."""

import asyncio
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.scenarios.client import Connection, connections, gather_over, request
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

EVENT, ADMIN = "/v1/events/sale", "/v1/admin/events/sale"
DISK_KIB = 6 * 1024
PAGE = "page " * 10_000
SAVED = 20
WAITING = 16


class MountedDisk:
    """A file system of its own, of a few MiB, in memory."""

    snapshot_answer = 503

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(place)]
        subprocess.run(command, check=True, timeout=10, capture_output=True)

    def fill(self, daemon: Daemon) -> None:
        """Write until there is no space left."""
        with (self.place / "filler").open("wb", buffering=0) as file:
            for block in (1 << 16, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(block)) == block:
                        pass

    def free(self, daemon: Daemon) -> None:
        """Make room again."""
        (self.place / "filler").unlink()

    def end(self) -> None:
        """Take the file system away."""
        subprocess.run(["umount", "--lazy", self.place], check=True, timeout=10)


class LimitedFiles:
    """A folder in which the daemon may make no more files of a segment's size; nobody needs to be root for that."""

    snapshot_answer = 200

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self, daemon: Daemon) -> None:
        """Let the next segment not be had."""
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, ((1 << 20) - 1, resource.RLIM_INFINITY))

    def free(self, daemon: Daemon) -> None:
        """Lift the limit."""
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def end(self) -> None:
        """Leave nothing to be done."""


Disk: TypeAlias = MountedDisk | LimitedFiles


@pytest.fixture(params=[MountedDisk, LimitedFiles])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Give a disk that can be filled; where nothing can be mounted, twice the one that needs no mount."""
    try:
        disk: Disk = request.param(tmp_path / "disk")
    except (subprocess.CalledProcessError, FileNotFoundError):
        disk = LimitedFiles(tmp_path / "limited")
    yield disk
    disk.end()


def open_sale(daemon: Daemon, **settings: object) -> None:
    daemon.admin("PUT", ADMIN, {"batch_size": 1, "batch_interval_s": 3600, **settings})
    daemon.admin("POST", f"{ADMIN}/open", {})


def join(daemon: Daemon, user_id: str) -> tuple[int, Any]:
    return daemon.call("POST", f"{EVENT}/join", {"user_id": user_id}, Idempotency_Key=user_id)


def change_pages_until_refused(daemon: Daemon) -> None:
    """Fill the segments with settings, until the journal takes no more of what is not essential."""

    def refused() -> bool:
        status, problem = daemon.call("PATCH", ADMIN, {"page": {"text": f"{PAGE}{os.urandom(4).hex()}"}}, key=key)
        assert status == 200 or (status, problem["code"]) == (503, "storage_full"), problem
        return status != 200

    key = daemon.admin_key
    until(refused, "a full disk")


def test_on_a_full_disk_joins_are_refused_everything_else_goes_on_and_joins_resume_with_space(
    small_disk: Disk, start_daemon: StartDaemon
) -> None:
    data = small_disk.place / "data"
    daemon = start_daemon("--segment-mib", "1", data=data)
    open_sale(daemon)
    places = [join(daemon, f"u{number}")[1] for number in range(SAVED)]
    small_disk.fill(daemon)
    change_pages_until_refused(daemon)
    for _ in range(3):
        status, problem = join(daemon, "late")
        assert (status, problem["code"]) == (503, "storage_full")
    assert daemon.call("GET", "/readyz")[1]["refuses"] == "storage_full"
    assert daemon.admin("POST", f"{ADMIN}/release", {"count": 3})["released"] == 3
    assert daemon.call("POST", f"{EVENT}/complete", {"user_id": "u0"}, key=daemon.site_key)[0] == 200
    assert daemon.call("POST", f"{EVENT}/leave", {}, key=places[5]["token"])[0] == 204
    assert daemon.call("GET", f"{EVENT}/position", key=places[6]["token"])[1]["position"] == 3
    assert daemon.process.poll() is None
    small_disk.free(daemon)
    assert until(lambda: join(daemon, "late")[0] == 201, "a join with space on the disk")
    assert daemon.call("GET", "/readyz")[0] == 200
    daemon.kill()
    again = start_daemon("--segment-mib", "1", data=data)
    counts = again.admin("GET", f"{ADMIN}/stats")["counts"]
    assert (counts["waiting"], counts["ready"], counts["completed"], counts["left"]) == (SAVED - 3, 2, 1, 1)
    assert again.stop() == 0


def test_on_a_disk_that_stays_full_leaves_go_on_even_after_a_kill_and_a_restart(
    small_disk: Disk, start_daemon: StartDaemon
) -> None:
    data = small_disk.place / "data"
    daemon = start_daemon("--segment-mib", "1", data=data)
    open_sale(daemon)
    places = [join(daemon, f"u{number}")[1] for number in range(SAVED)]
    small_disk.fill(daemon)
    change_pages_until_refused(daemon)
    left = 0
    for place in places[:10]:
        left += daemon.call("POST", f"{EVENT}/leave", {}, key=place["token"])[0] == 204
    assert left == 10
    status, told = daemon.call("POST", "/v1/admin/snapshot", {}, key=daemon.admin_key)
    assert status == small_disk.snapshot_answer, told
    assert daemon.call("GET", f"{EVENT}/position", key=places[10]["token"])[1]["position"] == 1
    daemon.kill()
    again = start_daemon("--segment-mib", "1", data=data)
    counts = again.admin("GET", f"{ADMIN}/stats")["counts"]
    assert (counts["waiting"], counts["left"]) == (SAVED - 10, 10)
    assert again.call("POST", f"{EVENT}/leave", {}, key=places[10]["token"])[0] == 204
    assert again.call("GET", f"{EVENT}/position", key=places[11]["token"])[1]["position"] == 1


# ---- a failing flush ------------------------------------------------------------------------------------


class FailingDisk:
    """strace on a running daemon: every fdatasync from the k-th on fails with EIO."""

    def __init__(self, daemon: Daemon, first: int, *, delay_ms: int = 0) -> None:
        inject = f"inject=fdatasync:error=EIO:delay_enter={delay_ms}ms:when={first}+"
        command = ["strace", "-f", "-p", str(daemon.process.pid), "-e", "trace=fdatasync", "-e", inject]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        assert any("attached" in line for line in lines), "strace did not attach"
        self._reader = threading.Thread(target=lambda: list(lines))
        self._reader.start()

    def end(self) -> None:
        """Wait for strace, which ends with the daemon."""
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.mark.parametrize("first", [1, 4, 9])
def test_a_flush_that_fails_refuses_those_who_wait_ends_with_74_and_keeps_all_who_were_answered(
    first: int, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon()
    open_sale(daemon)
    answered = [user_id for user_id in map("before{}".format, range(5)) if join(daemon, user_id)[0] == 201]
    disk = FailingDisk(daemon, first)
    refused: list[tuple[int, Any]] = []
    try:
        while not refused:
            user_id = f"during{len(answered)}"
            status, told = join(daemon, user_id)
            if status == 201:
                answered.append(user_id)
            else:
                refused.append((status, told))
        assert [(status, told["code"]) for status, told in refused] == [(503, "backend_unavailable")]
        assert daemon.wait() == 74
    finally:
        daemon.kill()
        disk.end()
    assert len(answered) < 5 + first
    assert "log_failed" in daemon.log() and "Traceback" not in daemon.log()
    again = start_daemon()
    for number, user_id in enumerate(answered, 1):
        status, place = join(again, user_id)
        assert (status, place["number"]) == (200, number)


async def test_everybody_who_waits_for_the_flush_that_fails_gets_503(start_daemon: StartDaemon) -> None:
    daemon = await asyncio.to_thread(start_daemon)
    await asyncio.to_thread(open_sale, daemon)
    with connections([await Connection.open(daemon.url) for _ in range(WAITING)]) as pool:
        disk = await asyncio.to_thread(FailingDisk, daemon, 1, delay_ms=500)
        try:
            asked = [request("POST", f"{EVENT}/join", {}, key=f"k{number}") for number in range(WAITING)]
            replies = await gather_over(pool, asked)
            assert await asyncio.to_thread(daemon.wait) == 74
        finally:
            daemon.kill()
            disk.end()
    assert [reply.status for reply in replies] == [503] * WAITING
    assert all(b'"backend_unavailable"' in reply.body for reply in replies)
