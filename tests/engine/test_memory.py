"""The embedded backend over a journal whose durability the test holds in its hand."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from engine.actor import By, Entrant, Holder, Whom
from engine.backends.memory import MemoryBackend
from engine.errors import Refused
from engine.identities import subject_of
from engine.records import Banned, Parked, Record, Returned
from engine.views import Notice

OPS, WHY = By("ops"), By("ops", "why")
U1, U2, U3 = Holder(3, "u1"), Holder(1, "u2"), Holder(4, "u3")
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
    broken: bool = False
    log: list[Record] = field(default_factory=list)
    waiting: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)

    def snapshot_parts(self) -> Iterator[object]:
        return iter(())

    def replay(self) -> Iterator[tuple[int, Record]]:
        return iter(())

    async def start(self) -> None:
        pass

    def refusal(self, *, essential: bool) -> Refused | None:
        is_refused = self.broken or (self.full and not essential)
        return Refused("storage_full", "no space") if is_refused else None

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
def clock() -> list[int]:
    return [1_000]


@pytest.fixture
async def backend(journal: GatedJournal, clock: list[int]) -> MemoryBackend:
    """u0 is active, u1 waits, u2 is parked, u3 is ready; and e2 is a lobby with one in it. Then the gate is shut."""
    backend = MemoryBackend(journal, lambda: clock[0], lambda: 5_000, DRAW_KEY)
    await backend.start()
    await backend.configure("e1", {"presence_timeout_s": 20, "session_ttl_s": 60}, OPS, replace=True)
    await backend.control("e1", "open", OPS)
    for user_id in ("u2", "u0", "u1", "u3"):
        await backend.join("e1", Entrant(user_id))
    for _ in range(10):
        clock[0] += 5_000
        await backend.touch("e1", U1)
        await backend.touch("e1", Holder(2, "u0"))
        await backend.touch("e1", U3)
    await backend.release("e1", 1, OPS)
    await backend.redeem("e1", 2, 1, subject_of("e1", "u0"), "jti", "k1", "site")
    await backend.admit("e1", Whom(user_id="u3"), WHY)
    await backend.configure("e2", {"lobby": True}, OPS, replace=True)
    await backend.control("e2", "lobby", OPS)
    await backend.join("e2", Entrant("u0"))
    clock[0] += 1_000
    journal.gate_open = False
    return backend


CALLS = {
    "join": lambda backend: backend.join("e1", Entrant("new")),
    "take over": lambda backend: backend.join("e1", Entrant("u1", 5, word="site")),
    "come back": lambda backend: backend.touch("e1", U2),
    "leave": lambda backend: backend.leave("e1", U1),
    "transfer": lambda backend: backend.transfer("e1", U1, 9),
    "extend the claim": lambda backend: backend.extend_claim("e1", U3),
    "redeem": lambda backend: backend.redeem("e1", 4, 1, subject_of("e1", "u3"), "jti", "k2", "site"),
    "extend the session": lambda backend: backend.extend_session("e1", Whom(user_id="u0"), "site"),
    "complete": lambda backend: backend.complete("e1", Whom(user_id="u0"), "completed", "site"),
    "admit": lambda backend: backend.admit("e1", Whom(user_id="u1"), WHY),
    "remove": lambda backend: backend.remove("e1", Whom(user_id="u1"), WHY),
    "ban": lambda backend: backend.remove("e1", Whom(user_id="u1"), WHY, ban=True),
    "release": lambda backend: backend.release("e1", 1, OPS),
    "pause": lambda backend: backend.control("e1", "pause", WHY),
    "open": lambda backend: backend.control("e2", "open", OPS),
    "message": lambda backend: backend.tell("e1", "hello", OPS),
    "settings": lambda backend: backend.configure("e1", {"name": "x"}, OPS, replace=False),
}

READS = {
    "join again": lambda backend: backend.join("e1", Entrant("u1")),
    "place": lambda backend: backend.place("e1", U1),
    "touch": lambda backend: backend.touch("e1", U1),
    "find": lambda backend: backend.find("e1", Whom(user_id="u1")),
    "visitors": lambda backend: backend.visitors("e1", None, 0, 10),
    "session": lambda backend: backend.session("e1", Whom(user_id="u0")),
    "redeem again": lambda backend: backend.redeem("e1", 2, 1, subject_of("e1", "u0"), "jti", "k1", "site"),
    "event": lambda backend: backend.event("e1"),
    "events": lambda backend: backend.events(),
    "stats": lambda backend: backend.stats("e1"),
    "fairness": lambda backend: backend.fairness("e1"),
    "entries": lambda backend: backend.draw_entries("e1", 0, 10),
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


@pytest.mark.parametrize("repeat", READS)
async def test_no_read_or_repeat_tells_what_is_not_durable(
    repeat: str, backend: MemoryBackend, journal: GatedJournal
) -> None:
    write = asyncio.ensure_future(backend.leave("e1", U1))
    await settle()
    read = asyncio.ensure_future(READS[repeat](backend))
    await settle()
    assert not read.done()
    journal.open_gate()
    await asyncio.wait_for(asyncio.gather(read, write), 1)


async def test_a_ban_of_somebody_who_is_gone_is_durable_before_it_is_refused(
    backend: MemoryBackend, journal: GatedJournal
) -> None:
    leaving = asyncio.ensure_future(backend.leave("e1", U1))
    await settle()
    journal.open_gate()
    await leaving
    answer = asyncio.ensure_future(backend.remove("e1", Whom(user_id="u1"), WHY, ban=True))
    await settle()
    assert not answer.done() and isinstance(journal.log[-1], Banned)
    journal.open_gate()
    with pytest.raises(Refused):
        await answer


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
    assert (await asyncio.wait_for(other, 1)).number == 6
    assert (await backend.join("e1", Entrant("gone"))).number == 5


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
    assert len(backend.venue.room("e1").ledger.register) == 4
    assert backend.status().refuses_joins == "storage_full"


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"join", "take over", "settings"}))
async def test_a_disk_that_fills_holds_up_nobody_who_has_a_place(
    name: str, backend: MemoryBackend, journal: GatedJournal
) -> None:
    journal.full, journal.gate_open = True, True
    await CALLS[name](backend)


async def test_nothing_is_released_and_nothing_expires_while_nothing_can_be_written(
    backend: MemoryBackend, journal: GatedJournal, clock: list[int]
) -> None:
    journal.broken = True
    before = journal.last_lsn
    clock[0] += 3_600_000
    await backend.tick()
    assert journal.last_lsn == before
    journal.broken, journal.gate_open = False, True
    await backend.tick()
    assert journal.last_lsn > before


async def test_a_long_draw_lets_others_run_in_between(
    backend: MemoryBackend, journal: GatedJournal, clock: list[int]
) -> None:
    journal.gate_open = True
    room = backend.venue.room("e2")
    for index in range(3_000):
        room.join(Entrant(f"v{index}"), clock[0])
    opening = asyncio.ensure_future(backend.control("e2", "open", OPS))
    await asyncio.sleep(0)
    assert room.ledger.undrawn()
    late = await backend.join("e2", Entrant("late"))
    assert (late.number, opening.done()) == (3_002, False)
    await opening
    assert not room.ledger.undrawn()
    assert (await backend.place("e2", Holder(late.arrival, "late"))).position == 3_002


async def test_a_large_release_is_one_moment_in_slices(
    backend: MemoryBackend, journal: GatedJournal, clock: list[int]
) -> None:
    journal.gate_open = True
    for index in range(2_300):
        backend.venue.room("e1").join(Entrant(f"v{index}"), clock[0])
    first = journal.last_lsn
    result = await backend.release("e1", 2_100, OPS)
    assert (result.released, result.more) == (2_100, False)
    released = [record for record in journal.log[first:] if not isinstance(record, Parked)][-3:]
    assert [len(record.numbers) for record in released] == [1_000, 1_000, 100]  # type: ignore[union-attr]
    assert len({record.at_ms for record in released}) == 1


async def test_many_are_heard_at_once_and_who_is_not_there_any_more_is_passed_over(
    backend: MemoryBackend, journal: GatedJournal, clock: list[int]
) -> None:
    journal.gate_open = True
    await backend.leave("e1", U1)
    for user_id in ("u5", "u6"):
        await backend.join("e1", Entrant(user_id))
    before = journal.last_lsn
    for _ in range(10):
        clock[0] += 5_000
        backend.heard("e1", [0, 2, 3, 5, 99, -1], True)
        backend.heard("nowhere", [1], True)
    assert journal.last_lsn == before
    presence, settings = backend.venue.room("e1").ledger.presence, backend.venue.room("e1").ledger.settings
    assert [presence.is_present(arrival, settings) for arrival in (1, 4, 5, 6)] == [False, False, True, False]


async def test_who_is_parked_and_heard_of_is_back_in_line_and_everybody_is_told(
    backend: MemoryBackend, journal: GatedJournal
) -> None:
    notices = backend.notices()
    backend.heard("e1", [1], False)
    assert journal.last_lsn == journal.durable_lsn
    journal.full = True
    backend.heard("e1", [1, 2], True)
    assert isinstance(journal.log[-1], Returned)
    hearing = asyncio.ensure_future(anext(notices))
    await settle()
    assert not hearing.done()
    journal.open_gate()
    assert [notice.version for notice in await asyncio.wait_for(hearing, 1)] == [journal.last_lsn]


async def test_nobody_comes_back_by_being_heard_of_while_nothing_can_be_written(
    backend: MemoryBackend, journal: GatedJournal, clock: list[int]
) -> None:
    journal.broken = True
    before = journal.last_lsn
    backend.heard("e1", [1, 3], True)
    assert journal.last_lsn == before and not backend.venue.outbox.records
    assert backend.venue.room("e1").ledger.graces.at_ms.keys() == {1}


async def test_a_log_that_fails_after_somebody_was_heard_of_is_no_error_of_nobody(
    backend: MemoryBackend, journal: GatedJournal, caplog: pytest.LogCaptureFixture
) -> None:
    backend.heard("e1", [1], True)
    journal.open_gate(Refused("backend_unavailable", "the log failed"))
    await settle()
    gc.collect()
    assert caplog.records == []


async def test_rebuilding_a_long_log_piles_up_no_notices(journal: GatedJournal, backend: MemoryBackend) -> None:
    journal.gate_open = True
    for _ in range(50):
        await backend.tell("e1", "hello", OPS)
    most = 0

    class Replayed(GatedJournal):
        def replay(self) -> Iterator[tuple[int, Record]]:
            nonlocal most
            for lsn, record in enumerate(journal.log, 1):
                yield lsn, record
                most = max(most, len(again.venue.outbox.notices))

    there = len(journal.log)
    again = MemoryBackend(Replayed(epoch=2, last_lsn=there, durable_lsn=there), lambda: 0, lambda: 0, DRAW_KEY)
    await again.start()
    assert again.venue.outbox.lsn == there + 1 > 50
    assert most == 0


async def test_a_venue_that_is_given_is_taken_as_it_is_and_time_goes_on_from_what_is_said(
    backend: MemoryBackend, journal: GatedJournal
) -> None:
    newest_ms = backend.venue.outbox.last_ms
    for said_ms, expected_ms in ((0, newest_ms), (newest_ms + 700, newest_ms + 700)):
        there = backend.venue.outbox.lsn
        next_term = GatedJournal(epoch=5, last_lsn=there, durable_lsn=there)
        again = MemoryBackend(next_term, lambda: 77, lambda: 5_000, DRAW_KEY, backend.venue, said_ms)
        assert again.epoch == backend.venue.epoch
        await again.start()
        assert (again.now_ms(), again.epoch, again.venue) == (expected_ms, 5, backend.venue)


async def test_the_clock_goes_on_from_the_last_record_and_not_from_the_wall(journal: GatedJournal) -> None:
    clock_ms, wall_ms = [100], [9_000_000]
    backend = MemoryBackend(journal, lambda: clock_ms[0], lambda: wall_ms[0], DRAW_KEY)
    await backend.start()
    clock_ms[0], wall_ms[0] = 150, 50_000_000
    await backend.configure("e1", {}, OPS, replace=True)
    assert [record.at_ms for record in journal.log] == [9_000_000, 9_000_050]
