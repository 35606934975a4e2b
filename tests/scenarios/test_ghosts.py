"""Ten thousand who left stand at the head of a hundred thousand, and nobody behind them waits for them.

The large crowd is asked in this process, with a clock that is moved; the small one is a real daemon, real polls, and
fifteen real seconds of silence.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import uvloop

from engine.actor import Holder
from engine.backends.memory import MemoryBackend
from engine.presence import Presence
from engine.records import Expired, Parked, Record, Released
from engine.settings import Settings
from engine.views import Place
from tests.scenarios.client import Connection, PlaceReply, connections, gather_over, read_lines, request
from tests.scenarios.crowds import OPERATOR, backend_in, join_all
from tests.scenarios.history import LogLine
from tests.scenarios.moments import Clock
from tests.server.conftest import StartDaemon
from tests.server.daemons import Daemon

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

CROWD, GHOSTS, BATCH = 100_000, 10_000, 100
INTERVAL_S, GRACE_S = 30, 60
PATIENT = {"claim_window_s": 3600, "claim_max_s": 3600}
SHORT = {"presence_timeout_s": 15, "presence_timeout_hidden_s": 15}
SETTINGS = {"batch_size": BATCH, "batch_interval_s": INTERVAL_S, "grace_s": GRACE_S, **SHORT, **PATIENT}


# ---- a hundred thousand, in this process ----------------------------------------------------------------


class Batch(NamedTuple):
    """One batch of the pacer: who was let in, who was stepped over, how many were looked at for it, and its time."""

    released: Sequence[int]
    parked: Sequence[int]
    looked_at: int
    seconds: float


class Crowd:
    """A line in this process, whose people are heard of when a test says so."""

    def __init__(self, backend: MemoryBackend, clock: Clock, places: Sequence[Place]) -> None:
        self.backend = backend
        self.clock = clock
        self.places = places

    @classmethod
    @asynccontextmanager
    async def gathered(cls, data: Path, people: int) -> AsyncIterator["Crowd"]:
        """Open an event and let so many join it at once."""
        clock = Clock()
        async with backend_in(data, clock.monotonic_ms, clock.wall_ms) as backend:
            await backend.configure("sale", SETTINGS, OPERATOR, replace=True)
            await backend.control("sale", "open", OPERATOR)
            places = await join_all(backend, "sale", [f"u{index}" for index in range(1, people + 1)])
            yield cls(backend, clock, places)

    async def hear(self, number: int) -> Place:
        """Let one be heard of."""
        place = self.places[number - 1]
        return await self.backend.touch("sale", Holder(number, place.user_id, 0))

    async def live(self, seconds: int, present: Iterable[int]) -> None:
        """Let time go by, in which these are heard of twice a presence timeout and nobody else is."""
        numbers = list(present)
        for _ in range(seconds // 6):
            self.clock.advance(6)
            for number in numbers:
                await self.hear(number)
        self.clock.advance(seconds % 6)

    async def batch(self) -> Batch:
        """Let the pacer do what is due."""
        before, looked_at = self.backend.status().version, 0
        is_present = Presence.is_present

        def counted(presence: Presence, arrival: int, settings: Settings) -> bool:
            nonlocal looked_at
            looked_at += 1
            return is_present(presence, arrival, settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Presence, "is_present", counted)
            began_s = time.perf_counter()
            await self.backend.tick()
            seconds = time.perf_counter() - began_s
        records = await self.records(before + 1)
        released = [number for record in records if isinstance(record, Released) for number in record.numbers]
        parked = [number for record in records if isinstance(record, Parked) for number in record.numbers]
        return Batch(released, parked, looked_at, seconds)

    async def records(self, from_version: int) -> list[Record]:
        """Return what is on record from there on."""
        return [record async for batch in self.backend.records(from_version) for _, record in batch]


class Story(NamedTuple):
    """What became of the hundred thousand."""

    first: Batch
    second: Batch
    third: Batch
    returned: list[Place]
    after_returning: int
    expired_early: int
    expired: list[Expired]
    status_of_ghost: str


async def tell(data: Path) -> Story:
    """Ten thousand fall silent; two of them come back before the second batch and one in the last second of grace."""
    async with Crowd.gathered(data, CROWD) as crowd:
        version = crowd.backend.status().version
        present = range(GHOSTS + 1, CROWD + 1)
        near = [*range(GHOSTS + 1, GHOSTS + 4 * BATCH), 5_000, 7_000]
        await crowd.live(INTERVAL_S - 6, near[:-2])
        await crowd.live(6, present)
        first = await crowd.batch()
        returned = [await crowd.hear(number) for number in (7_000, 5_000)]
        await crowd.live(INTERVAL_S, near)
        second = await crowd.batch()
        await crowd.live(INTERVAL_S - 1, near)
        too_early = await crowd.batch()
        assert not too_early.released and not too_early.looked_at
        late = await crowd.hear(9_000)
        early = [record for record in await crowd.records(version) if isinstance(record, Expired)]
        crowd.clock.advance(1)
        third = await crowd.batch()
        expired = [record for record in await crowd.records(version) if isinstance(record, Expired)]
        ghost = await crowd.hear(1)
        crowd.backend.venue.check()
        return Story(first, second, third, returned, late.position or 0, len(early), expired, ghost.status)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return uvloop.run(tell(tmp_path_factory.mktemp("crowd") / "data"))


def test_the_first_hundred_present_behind_ten_thousand_ghosts_are_let_in_by_the_first_batch(story: Story) -> None:
    assert story.first.released == list(range(GHOSTS + 1, GHOSTS + BATCH + 1))
    assert story.first.parked == list(range(1, GHOSTS + 1))


def test_stepping_over_is_paid_once_and_later_batches_look_at_nobody_but_those_they_let_in(story: Story) -> None:
    assert story.first.looked_at == GHOSTS + BATCH
    for later in (story.second, story.third):
        assert not later.parked
        assert later.looked_at == len(later.released) == BATCH


def test_a_ghost_who_returns_is_told_to_be_first_and_leads_the_next_batch(story: Story) -> None:
    assert [(place.status, place.number, place.position) for place in story.returned] == [
        ("waiting", 7_000, 1),
        ("waiting", 5_000, 1),
    ]
    assert story.second.released[:3] == [5_000, 7_000, GHOSTS + BATCH + 1]
    assert story.after_returning == 1 and story.third.released[0] == 9_000


def test_ghosts_who_stay_away_expire_when_their_grace_is_over_and_not_before(story: Story) -> None:
    assert story.expired_early == 0
    assert len(story.expired) == GHOSTS - 3
    assert {record.cause for record in story.expired} == {"absent"}
    assert story.status_of_ghost == "expired"


def test_the_batches_after_the_ghosts_are_let_in_without_a_gap(story: Story) -> None:
    behind = [*story.first.released, *story.second.released[2:], *story.third.released[1:]]
    assert behind == list(range(GHOSTS + 1, GHOSTS + 3 * BATCH - 2))


async def test_while_nobody_at_all_is_heard_nobody_is_taken_for_gone(tmp_path: Path) -> None:
    async with Crowd.gathered(tmp_path / "data", 2_000) as crowd:
        for number in range(5):
            crowd.clock.advance(600)
            if number > 2:
                await crowd.hear(2_000)
            batch = await crowd.batch()
            assert not batch.parked, "the network in front of us was down; that is no absence"
            assert batch.released == list(range(number * BATCH + 1, (number + 1) * BATCH + 1))
        await crowd.live(24, range(1_000, 2_001))
        crowd.clock.advance(6)
        batch = await crowd.batch()
        assert batch.released[0] == 1_000 and batch.parked == list(range(5 * BATCH + 1, 1_000))


# ---- a real daemon, real silence ------------------------------------------------------------------------

FEW_GHOSTS, FEW_PRESENT, FEW = 500, 400, 50
SILENCE_S = 20
REAL = {"batch_size": FEW, "batch_interval_s": SILENCE_S, "grace_s": 600, **SHORT, **PATIENT}
EVENT, ADMIN = "/v1/events/sale", "/v1/admin/events/sale"
POLL_EVERY_S = 3.5


class Small:
    """Those present at a real daemon, who poll, and those who do not."""

    def __init__(self, daemon: Daemon, pool: Sequence[Connection]) -> None:
        self.daemon = daemon
        self.pool = pool
        self.tokens: list[str] = []

    async def admin(self, method: str, path: str, body: object) -> None:
        await asyncio.to_thread(self.daemon.admin, method, path, body)

    async def join(self, count: int) -> None:
        asked = [request("POST", f"{EVENT}/join", {"user_id": f"u{n}"}, key=f"key-{n}") for n in range(count)]
        places = [reply.json(PlaceReply) for reply in await gather_over(self.pool, asked)]
        self.tokens = [place.token or "" for place in sorted(places, key=lambda place: place.number)]

    async def poll(self, tokens: Sequence[str]) -> list[PlaceReply]:
        asked = [request("GET", f"{EVENT}/position", bearer=token) for token in tokens]
        return [reply.json(PlaceReply) for reply in await gather_over(self.pool, asked)]

    async def records(self) -> list[LogLine]:
        return await asyncio.to_thread(read_lines, self.daemon.url, self.daemon.admin_key, LogLine)

    async def batches(self, count: int) -> list[LogLine]:
        """Wait for so many batches, polling as those present do, and return their records."""
        while True:
            await self.poll(self.tokens[FEW_GHOSTS:])
            released = [line for line in await self.records() if line.kind == "released"]
            if len(released) >= count:
                return released
            await asyncio.sleep(0.2)


async def test_real_polls_keep_people_present_and_real_silence_does_not(start_daemon: StartDaemon) -> None:
    daemon = await asyncio.to_thread(start_daemon)
    pool = [await Connection.open(daemon.url) for _ in range(8)]
    with connections(pool):
        small = Small(daemon, pool)
        await small.admin("PUT", ADMIN, REAL)
        await small.admin("POST", f"{ADMIN}/open", {})
        opened_s = time.monotonic()
        await small.join(FEW_GHOSTS + FEW_PRESENT)
        async with asyncio.timeout(60):
            while (left_s := opened_s + SILENCE_S - 2 - time.monotonic()) > 0:
                await asyncio.sleep(min(left_s, POLL_EVERY_S))
                await small.poll(small.tokens[FEW_GHOSTS:])
            (first,) = await small.batches(1)
            (ghost,) = await small.poll(small.tokens[123:124])
            await small.admin("PATCH", ADMIN, {"batch_interval_s": 1})
            second, third = (await small.batches(3))[1:3]
            log = await small.records()
    assert first.numbers == list(range(FEW_GHOSTS + 1, FEW_GHOSTS + FEW + 1))
    assert (ghost.status, ghost.position) == ("waiting", 1)
    assert second.numbers == [124, *range(FEW_GHOSTS + FEW + 1, FEW_GHOSTS + 2 * FEW)]
    assert third.numbers == list(range(FEW_GHOSTS + 2 * FEW, FEW_GHOSTS + 3 * FEW))
    assert [line.numbers for line in log if line.kind == "parked"] == [list(range(1, FEW_GHOSTS + 1))]
