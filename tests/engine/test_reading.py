"""The reading verbs: each looks only once it may, and says what it saw only once that may be spoken of."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engine.actor import Entrant, Holder, Whom
from engine.backends.reading import AT_ONCE, VenueReader
from engine.errors import Refused
from engine.venue import Venue
from tests.engine.rooms import OPERATOR, control, join_many, make_room

U1 = Holder(1, "u1")

READS: dict[str, Callable[[VenueReader], Awaitable[object]]] = {
    "place": lambda reader: reader.place("e1", U1),
    "find": lambda reader: reader.find("e1", Whom(user_id="u1")),
    "visitors": lambda reader: reader.visitors("e1", None, 0, 10),
    "session": lambda reader: reader.session("e1", Whom(user_id="u1")),
    "event": lambda reader: reader.event("e1"),
    "events": lambda reader: reader.events(),
    "stats": lambda reader: reader.stats("e1"),
    "fairness": lambda reader: reader.fairness("e1"),
    "entries": lambda reader: reader.draw_entries("e1", 0, 10),
}
OF_AN_EVENT = sorted(set(READS) - {"events"})


class Gated(VenueReader):
    """A reader that waits where the test says."""

    def __init__(self) -> None:
        super().__init__(Venue())
        self.current = asyncio.Event()
        self.spoken_of = asyncio.Event()
        self.asked_lsn: int | None = None
        self.least_versions: list[int | None] = []

    def now_ms(self) -> int:
        return 5_000

    async def _up_to_date(self, least_version: int | None = None) -> None:
        self.least_versions.append(least_version)
        await self.current.wait()

    async def _durable(self, lsn: int) -> None:
        self.asked_lsn = lsn
        await self.spoken_of.wait()


@pytest.fixture
async def reader() -> Gated:
    """u1 and u2 wait."""
    reader = Gated()
    room = make_room(reader.venue)
    control(room, "open", OPERATOR, 1_000)
    join_many(room, 2, 1_000)
    return reader


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", READS)
async def test_a_read_looks_once_it_may_and_tells_once_that_may_be_spoken_of(name: str, reader: Gated) -> None:
    reading = asyncio.ensure_future(READS[name](reader))
    await settle()
    assert (reader.asked_lsn, reader.least_versions) == (None, [None])
    reader.venue.room("e1").join(Entrant("u3"), 2_000)
    reader.current.set()
    await settle()
    assert reader.asked_lsn == reader.venue.outbox.lsn, "it saw what came while it waited"
    assert not reading.done()
    reader.spoken_of.set()
    await asyncio.wait_for(reading, 5)


@pytest.mark.parametrize("name", OF_AN_EVENT)
async def test_an_event_is_looked_for_after_the_wait_and_not_before(name: str, reader: Gated) -> None:
    reading = asyncio.ensure_future(READS[name](reader))
    await settle()
    del reader.venue.rooms["e1"]
    reader.current.set()
    with pytest.raises(Refused) as caught:
        await asyncio.wait_for(reading, 5)
    assert caught.value.code == "not_found"


async def test_who_was_told_of_a_version_says_so(reader: Gated) -> None:
    reader.current.set()
    reader.spoken_of.set()
    await reader.find("e1", Whom(arrival=1), least_version=3)
    await reader.event("e1", least_version=4)
    assert reader.least_versions == [3, 4]


async def test_what_is_pushed_waits_for_nothing(reader: Gated) -> None:
    assert reader.ranks("e1", [1, 2]).positions == [1, 2]
    assert reader.line_order("e1", 1) < reader.line_order("e1", 2)
    assert (reader.asked_lsn, reader.least_versions) == (None, [])


async def test_at_once_is_at_once() -> None:
    async def wait() -> str:
        await AT_ONCE
        return "done"

    with pytest.raises(StopIteration, match="done"):
        wait().send(None)
