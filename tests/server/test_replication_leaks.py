"""What a link leaves behind in a primary and its follower when it ends: nothing, however often it does."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from server.replication.ground import Ground
from server.replication.leading import Clocks
from server.replication.link import Link, LinkClosed, SealedLink
from server.replication.outbox import Outbox
from server.replication.publisher import Session
from server.replication.roles import Member
from server.replication.settings import ReplicationSettings
from snapshots.options import JournalOptions
from snapshots.storage import DiskStorage
from tests.server.test_replication_link import pipe
from tests.simulation.nodes import OneKey, Remembered

ROUNDS = 5
KINDS = (SealedLink, Session, Outbox, asyncio.Task, LinkClosed)


class Pair:
    """A primary and a follower in this process, and the newest link between them."""

    def __init__(self, folder: Path, *, is_edge: bool) -> None:
        self._serving: set[asyncio.Task[None]] = set()
        self.link: Link | None = None
        self.primary = Member(self._ground("primary", None, DiskStorage(folder / "primary"), None))
        disk = DiskStorage(folder / "follower")
        self.follower = Member(self._ground("follower", "http://primary", *((None, disk) if is_edge else (disk, None))))

    def _ground(
        self, name: str, follow: str | None, storage: DiskStorage | None, scratch: DiskStorage | None
    ) -> Ground:
        clocks = Clocks(time.monotonic_ns, lambda: time.monotonic_ns() // 1_000_000, lambda: 1_790_000_000_000)
        settings = ReplicationSettings(name, f"http://{name}")
        options = JournalOptions(segment_mib=1)
        return Ground(settings, storage, scratch, options, self._open, None, follow, Remembered(), OneKey(), clocks)

    async def _open(self, url: str) -> Link:
        near, far = pipe()
        serving = asyncio.create_task(self._serve(far))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        self.link = near
        return near

    async def _serve(self, link: Link) -> None:
        with suppress(LinkClosed):
            await self.primary.serve(link)

    async def linked(self) -> None:
        """Wait until the follower is there, and has what there is."""
        for _ in range(1000):
            if self.link is not None and self._is_up():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the follower did not come")

    def _is_up(self) -> bool:
        leading, following = self.primary.leading, self.follower.following
        return bool(leading and leading.publisher.sessions and following and following.is_reachable)

    async def cut(self) -> None:
        """End the link, and wait for the next one."""
        link, self.link = self.link, None
        assert link is not None
        link.close()
        await self.linked()


@pytest.fixture(params=["standby", "edge"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path, is_edge=request.param == "edge")
    await made.primary.start()
    await made.follower.start()
    running = [asyncio.create_task(member.run()) for member in (made.primary, made.follower)]
    await made.linked()
    gc.collect()
    gc.disable()  # as in a daemon
    yield made
    gc.enable()
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    await made.follower.close()
    await made.primary.close()


def left() -> dict[str, int]:
    counts = Counter(map(type, gc.get_objects()))
    return {kind.__name__: counts[kind] for kind in KINDS}


@pytest.mark.slow
async def test_a_link_that_is_lost_again_and_again_leaves_nothing_in_either(pair: Pair) -> None:
    await pair.cut()
    await asyncio.sleep(0.05)
    before = left()
    for _ in range(ROUNDS):
        await pair.cut()
    for _ in range(200):
        if all(count <= before[name] + 1 for name, count in left().items()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{before} before, {left()} after {ROUNDS} links")
