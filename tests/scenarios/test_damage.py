"""Damage on a real data folder, end to end: what the daemon and `stanchion verify` make of it, and what they say.

The library is held to every cut and flip of a modelled log in tests/snapshots. Here the folder was written by a
daemon, and what it makes of the damage is seen from outside: by exit code, by its first line, by its answers.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.errors import Damaged
from snapshots.backup import FrameSummary, inspect, verify
from snapshots.journal import Journal, JournalOptions
from snapshots.recovery import Decision
from snapshots.storage import DiskStorage
from snapshots.wal import FRAME_HEADER_BYTES
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon, cli, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

FRAMES_CUT = 4
VISITORS = 24
SMALL = JournalOptions(segment_mib=1 / 64)


@dataclass(frozen=True)
class Folder:
    """A data folder as a killed daemon left it: where its frames stand, and who had joined by which LSN."""

    data: Path
    frames: list[FrameSummary]
    users: dict[int, str]
    snapshot_end: tuple[str, int]

    @property
    def segment(self) -> Path:
        """Return the segment that was written to last."""
        return self.data / self.frames[-1].segment

    def joined_by(self, lsn: int) -> set[str]:
        """Return who had joined by an LSN."""
        return {user_id for joined_lsn, user_id in self.users.items() if joined_lsn <= lsn}

    def end_of_frames(self) -> int:
        """Return the offset behind the last frame."""
        return end_of(self.frames[-1])


def end_of(frame: FrameSummary) -> int:
    """Return the offset behind a frame, of which `inspect` tells the size of the payload."""
    return frame.offset + FRAME_HEADER_BYTES + frame.size_bytes


def leave_a_folder(daemon: Daemon, *, idle: bool) -> Folder:
    """Join, take a snapshot, join more, and kill: `idle` waits until the log has stated that all is durable."""
    daemon.admin("PUT", "/v1/admin/events/sale", {"batch_size": 1, "batch_interval_s": 3600})
    daemon.admin("POST", "/v1/admin/events/sale/open", {})
    users = {}
    for number in range(VISITORS):
        if number == VISITORS // 2:
            daemon.admin("POST", "/v1/admin/snapshot", {})
        status, place = daemon.call("POST", "/v1/events/sale/join", {"user_id": f"u{number}"}, Idempotency_Key="k")
        assert status == 201
        users[place["version"]] = place["user_id"]
    storage = DiskStorage(daemon.data)
    if idle:
        until(lambda: not list(inspect(storage))[-1].kinds, "an empty frame")
    daemon.kill()
    report = verify(storage)
    frames = list(inspect(storage))
    after = next(frame for frame in frames if frame.first_lsn > report.snapshot_lsn)
    return Folder(daemon.data, frames, users, (after.segment, after.offset))


@contextmanager
def content_of(segment: Path) -> Iterator[bytes]:
    """Give the bytes of a segment and put them back afterwards."""
    content = segment.read_bytes()
    try:
        yield content
    finally:
        segment.write_bytes(content)


# ---- cuts ---------------------------------------------------------------------------------------------


def test_a_log_cut_at_every_byte_of_its_last_frames_is_read_up_to_the_last_whole_frame(
    start_daemon: StartDaemon,
) -> None:
    folder = leave_a_folder(start_daemon(), idle=False)
    storage, cuts = DiskStorage(folder.data), 0
    with content_of(folder.segment) as content:
        for at in range(folder.frames[-FRAMES_CUT].offset, folder.end_of_frames() + 1):
            folder.segment.write_bytes(content[:at])
            whole = [frame for frame in folder.frames if end_of(frame) <= at]
            report = verify(storage)
            torn = at > end_of(whole[-1])
            assert report.last_lsn == whole[-1].last_lsn
            assert report.decision == (Decision.CUT_TAIL if torn else Decision.OPEN).value
            cuts += 1
    assert cuts > 200


@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.6, 0.99])
def test_a_daemon_started_on_a_cut_log_counts_what_it_cuts_and_keeps_everybody_before(
    place: float, start_daemon: StartDaemon
) -> None:
    folder = leave_a_folder(start_daemon(), idle=False)
    frame = [frame for frame in folder.frames if frame.kinds][-3]
    at = frame.offset + round(place * (end_of(frame) - frame.offset - 1))
    cut = folder.segment.read_bytes()[:at]
    folder.segment.write_bytes(cut)
    torn_bytes = len(cut[frame.offset :].rstrip(b"\0"))
    kept = folder.joined_by(frame.first_lsn - 1)
    verified = cli("verify", folder.data, "--json")
    assert verified.returncode == 0, verified.stderr
    told = json.loads(verified.stdout)
    assert (told["last_lsn"], told["visitors"]) == (frame.first_lsn - 1, len(kept))
    daemon = start_daemon()
    said = f"cut {torn_bytes} bytes never acknowledged (1 frame)"
    assert (said in daemon.first_line) == (torn_bytes > 0), daemon.first_line
    assert daemon.admin("GET", "/v1/admin/events/sale/stats")["arrivals"] == len(kept)
    for user_id in folder.users.values():
        status, _ = daemon.call("POST", "/v1/events/sale/join", {"user_id": user_id}, Idempotency_Key="k")
        assert status == (200 if user_id in kept else 201)


# ---- flips --------------------------------------------------------------------------------------------


def flips(folder: Folder) -> Iterator[tuple[FrameSummary, int]]:
    """Yield every byte after the snapshot and before the frame that states all to be durable, with its frame."""
    marker = folder.frames[-1]
    assert not marker.kinds and marker.durable_lsn == marker.last_lsn, "the log is not idle"
    for frame in folder.frames[:-1]:
        if (frame.segment, frame.offset) >= folder.snapshot_end:
            for offset in range(frame.offset, end_of(frame)):
                yield frame, offset


class Unflushed(DiskStorage):
    """A folder that is only refused, so that no flush of it matters; a thousand of them would take minutes."""

    def sync_directory(self, folder: str) -> None:
        """Leave the folder as it is."""


def test_a_bit_flipped_at_any_byte_behind_the_snapshot_is_refused_naming_file_offset_and_lsn(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    folder = leave_a_folder(start_daemon(), idle=True)
    copy = tmp_path / "copy"
    shutil.copytree(folder.data, copy)
    segment, refused = copy / folder.frames[-1].segment, 0
    content = segment.read_bytes()[: folder.end_of_frames()]
    for frame, offset in flips(folder):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        segment.write_bytes(damaged)
        where = f"{frame.segment} is damaged at offset {frame.offset}, LSN {frame.first_lsn} to"
        with pytest.raises(Damaged, match=where):
            Journal.open(Unflushed(copy), SMALL)
        assert segment.read_bytes() == damaged, "a refusal changes nothing"
        refused += 1
    assert refused > 1_000


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_daemon_is_refused_with_65_wherever_the_bit_was_flipped(place: float, start_daemon: StartDaemon) -> None:
    folder = leave_a_folder(start_daemon(), idle=True)
    candidates = list(flips(folder))
    frame, offset = candidates[round(place * (len(candidates) - 1))]
    segment = folder.data / frame.segment
    damaged = bytearray(segment.read_bytes())
    damaged[offset] ^= 0x10
    segment.write_bytes(damaged)
    for command in (("serve", "--port", "0", "--data", folder.data), ("verify", folder.data)):
        result = cli(*command)
        assert result.returncode == 65, result.stderr
        assert f"{frame.segment} is damaged at offset {frame.offset}, LSN {frame.first_lsn} to" in result.stderr
        assert "Traceback" not in result.stderr
    assert segment.read_bytes() == damaged
    damaged[offset] ^= 0x10
    segment.write_bytes(damaged)
    assert start_daemon().admin("GET", "/v1/admin/events/sale/stats")["arrivals"] == VISITORS
