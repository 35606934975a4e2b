"""The embedded backend over a journal whose durability the test holds in its hand."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from engine.actor import By, Entrant, Holder, Whom
from engine.backends.memory import MemoryBackend
from engine.errors import Refused
from engine.records import Record
from engine.views import Notice

OPS = By("ops")
DRAW_KEY = bytes(range(32))


@dataclass
class Figures:
    commits: int = 0


@dataclass
class GatedJournal:
    """A journal that becomes durable when it is told to."""

    epoch: int = 1
    last_lsn: int = 0
    durable_lsn: int = 0
    lost: str | None = None
    gate_open: bool = True
    full: bool = False
    log: list[Record] = field(default_factory=list)
    waiting: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)

    def snapshot_parts(self) -> Iterator[object]:
        return iter(())

    def replay(self) -> Iterator[tuple[int, Record]]:
        return iter(())

    async def start(self) -> None:
        pass

    def refusal(self, *, essential: bool) -> Refused | None:
        return Refused("storage_full", "no space") if self.full and not essential else None

    def append(self, records: Sequence[Record]) -> int:
        self.log += records
        self.last_lsn += len(records)
        if self.gate_open:
            self.durable_lsn = self.last_lsn
        return self.last_lsn

    def when_durable(self, lsn: int) -> asyncio.Future[None] | None:
        if lsn <= self.durable_lsn:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((lsn, future))
        return future

    def open_gate(self, error: Exception | None = None) -> None:
        self.durable_lsn = self.last_lsn if error is None else self.durable_lsn
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)
        self.waiting.clear()

    async def snapshot(self, lsn: int, at_ms: int, parts: Iterator[object]) -> object:
        return list(parts)

    async def read_records(self, from_lsn: int) -> AsyncIterator[list[tuple[int, Record]]]:
        yield list(enumerate(self.log, 1))[from_lsn - 1 :]

    def stats(self) -> Figures:
        return Figures()

    async def close(self) -> None:
        pass


@pytest.fixture
async def journal() -> GatedJournal:
    return GatedJournal()


@pytest.fixture
async def backend(journal: GatedJournal) -> MemoryBackend:
    backend = MemoryBackend(journal, lambda: 1_000, lambda: 5_000, DRAW_KEY)
    await backend.start()
    await backend.configure("e1", {}, OPS, replace=True)
    await backend.control("e1", "open", OPS)
    await backend.join("e1", Entrant("u0"))
    await backend.join("e1", Entrant("u1"))
    await backend.release("e1", 1, OPS)
    journal.gate_open = False
    return backend


CALLS = {
    "join": lambda backend: backend.join("e1", Entrant("new")),
    "leave": lambda backend: backend.leave("e1", Holder(2, "u1")),
    "complete": lambda backend: backend.complete("e1", Whom(user_id="u0"), "completed", "site"),
    "release": lambda backend: backend.release("e1", 1, OPS),
    "pause": lambda backend: backend.control("e1", "pause", By("ops", "why")),
    "message": lambda backend: backend.tell("e1", "hello", OPS),
    "settings": lambda backend: backend.configure("e1", {"name": "x"}, OPS, replace=False),
}


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", CALLS)
async def test_no_write_is_answered_before_it_is_durable(
    name: str, backend: MemoryBackend, journal: GatedJournal
) -> None:
    answer = asyncio.ensure_future(CALLS[name](backend))
    await settle()
    assert not answer.done() and journal.last_lsn > journal.durable_lsn
    journal.open_gate()
    await asyncio.wait_for(answer, 1)


@pytest.mark.parametrize("repeat", ["join", "place", "touch", "event", "events", "stats"])
async def test_no_read_or_repeat_tells_what_is_not_durable(
    repeat: str, backend: MemoryBackend, journal: GatedJournal
) -> None:
    write = asyncio.ensure_future(backend.leave("e1", Holder(2, "u1")))
    await settle()
    reads = {
        "join": lambda: backend.join("e1", Entrant("u0")),
        "place": lambda: backend.place("e1", Holder(2, "u1")),
        "touch": lambda: backend.touch("e1", Holder(2, "u1")),
        "event": lambda: backend.event("e1"),
        "events": backend.events,
        "stats": lambda: backend.stats("e1"),
    }
    read = asyncio.ensure_future(reads[repeat]())
    await settle()
    assert not read.done()
    journal.open_gate()
    await asyncio.wait_for(asyncio.gather(read, write), 1)


async def test_notices_wait_for_durability_too(backend: MemoryBackend, journal: GatedJournal) -> None:
    seen: list[Notice] = []

    async def listen() -> None:
        async for notices in backend.notices():
            seen.extend(notices)

    listener = asyncio.create_task(listen())
    await settle()
    release = asyncio.ensure_future(backend.release("e1", 1, OPS))
    await settle()
    assert seen == []
    journal.open_gate()
    await asyncio.wait_for(release, 1)
    await settle()
    assert len(seen) == 1
    await backend.close()
    await asyncio.wait_for(listener, 1)


async def test_a_client_that_goes_away_takes_no_record_with_it(backend: MemoryBackend, journal: GatedJournal) -> None:
    one = asyncio.ensure_future(backend.join("e1", Entrant("gone")))
    other = asyncio.ensure_future(backend.join("e1", Entrant("stays")))
    await settle()
    one.cancel()
    await settle()
    journal.open_gate()
    assert (await asyncio.wait_for(other, 1)).number == 4
    assert (await backend.join("e1", Entrant("gone"))).number == 3


async def test_a_failed_log_fails_those_who_wait_and_claims_nothing(
    backend: MemoryBackend, journal: GatedJournal
) -> None:
    answer = asyncio.ensure_future(backend.join("e1", Entrant("new")))
    await settle()
    journal.open_gate(Refused("backend_unavailable", "the log failed"))
    with pytest.raises(Refused) as caught:
        await answer
    assert caught.value.status == 503


async def test_a_full_disk_refuses_joins_before_anything_is_assigned(
    backend: MemoryBackend, journal: GatedJournal
) -> None:
    journal.full, journal.gate_open = True, True
    before = journal.last_lsn
    with pytest.raises(Refused) as caught:
        await backend.join("e1", Entrant("new"))
    assert (caught.value.code, journal.last_lsn) == ("storage_full", before)
    assert len(backend.venue.room("e1").ledger.register) == 2
    await backend.leave("e1", Holder(2, "u1"))
    assert backend.status().refuses_joins == "storage_full"


async def test_the_clock_goes_on_from_the_last_record_and_not_from_the_wall(journal: GatedJournal) -> None:
    clock_ms, wall_ms = [100], [9_000_000]
    backend = MemoryBackend(journal, lambda: clock_ms[0], lambda: wall_ms[0], DRAW_KEY)
    await backend.start()
    clock_ms[0], wall_ms[0] = 150, 50_000_000
    await backend.configure("e1", {}, OPS, replace=True)
    assert [record.at_ms for record in journal.log] == [9_000_000, 9_000_050]
