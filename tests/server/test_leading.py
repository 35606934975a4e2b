"""A primary at its start: however long it takes to rebuild the line, the lease is kept, or its loss is noticed."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import Refused
from server.replication.leading import Clocks, Leading
from server.replication.lease import LeaseKeeper
from server.replication.settings import ReplicationSettings
from server.replication.witness import Lease, LeaseTable, MemoryWitness
from snapshots.journal import Journal
from snapshots.options import JournalOptions
from snapshots.storage import DiskStorage
from tests.simulation.nodes import OneKey

LINE = b"line"
LEASE_S = 0.2
AGES_NS = 3_600 * 10**9


class Scene:
    """A primary that holds the lease and has not begun, on a clock that stands until it is moved."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = 10**9
        self.table = LeaseTable()
        self.journal = Journal.open(DiskStorage(folder), JournalOptions(segment_mib=1))
        self.keeper = LeaseKeeper(MemoryWitness(self.table, LINE, "a"), "a", LEASE_S, lambda: self.now_ns)
        clocks = Clocks(lambda: self.now_ns, lambda: self.now_ns // 1_000_000, lambda: 1_790_000_000_000)
        settings = ReplicationSettings("a", "http://a", lease_s=LEASE_S)
        self.leading = Leading(settings, self.journal, self.keeper, clocks, bytes(32), OneKey(), list, lambda url: None)

    async def start_after_ages(self) -> None:
        """Start, the lease long over."""
        self.now_ns += AGES_NS
        await asyncio.wait_for(self.leading.start(), 10)


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    await made.keeper.acquire(1, "http://a")
    return made


async def test_a_start_that_takes_longer_than_the_lease_renews_it_and_leads(scene: Scene) -> None:
    await scene.start_after_ages()
    assert scene.leading.may_speak()
    assert scene.leading.replicated.durable_lsn == scene.journal.last_lsn > 0
    await ended(scene)


async def test_a_lease_that_was_lost_before_the_start_was_over_is_given_up(scene: Scene) -> None:
    scene.table.rows[LINE] = Lease(99, 2, "b", "http://b", None)
    await scene.start_after_ages()
    stepdown = await asyncio.wait_for(scene.leading.run(), 10)
    assert stepdown.url == "http://b"
    assert scene.leading.replicated.right_refusal() is not None
    await ended(scene)


async def ended(scene: Scene) -> None:
    scene.leading.superseded(9, "http://c")
    await scene.leading.run()
    await scene.leading.close(Refused("not_primary", "it is over"))
