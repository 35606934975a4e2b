"""Once only, with a clock that is moved by hand."""

import asyncio

import pytest

from engine.errors import Refused
from server.answers import Answer
from server.idempotency import OnceOnly


class Maker:
    """Counts how often it was asked, and answers when let."""

    def __init__(self) -> None:
        self.asked = 0
        self.let = asyncio.Event()
        self.let.set()

    async def __call__(self) -> Answer:
        self.asked += 1
        await self.let.wait()
        return Answer(200, b"%d" % self.asked)


async def test_an_answer_is_given_again_as_a_copy() -> None:
    once, make = OnceOnly(lambda: 0.0), Maker()
    first = await once.run("admin", "k", b"r", make)
    first.with_headers(("Vary", "Origin"))
    again = await once.run("admin", "k", b"r", make)
    assert (make.asked, again.body) == (1, b"1")
    assert b"Vary" not in again.headers


async def test_keys_of_two_actors_are_two_keys() -> None:
    once, make = OnceOnly(lambda: 0.0), Maker()
    await once.run("ann", "k", b"r", make)
    await once.run("bob", "k", b"other", make)
    assert make.asked == 2


async def test_a_caller_that_goes_away_stops_nothing() -> None:
    once, make = OnceOnly(lambda: 0.0), Maker()
    make.let.clear()
    caller = asyncio.create_task(once.run("admin", "k", b"r", make))
    await asyncio.sleep(0)
    caller.cancel()
    make.let.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (await once.run("admin", "k", b"r", make)).body == b"1"


async def test_waiters_share_a_refusal_and_it_is_forgotten() -> None:
    once = OnceOnly(lambda: 0.0)

    async def refuse() -> Answer:
        await asyncio.sleep(0)
        raise Refused("conflict", "no")

    results = await asyncio.gather(*(once.run("a", "k", b"r", refuse) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [Refused] * 3
    assert len(once) == 0


async def test_an_answer_is_forgotten_after_its_life() -> None:
    now = [0.0]
    once, make = OnceOnly(lambda: now[0], life_s=10.0), Maker()
    await once.run("admin", "k", b"r", make)
    now[0] = 9.9
    await once.run("admin", "k", b"r", make)
    assert make.asked == 1
    now[0] = 10.0
    await once.run("admin", "k", b"r", make)
    assert make.asked == 2


async def test_the_oldest_are_forgotten_first() -> None:
    once, make = OnceOnly(lambda: 0.0, keys_limit=3), Maker()
    for key in "abcd":
        await once.run("admin", key, b"r", make)
    assert len(once) == 3
    await once.run("admin", "d", b"r", make)
    assert make.asked == 4
    await once.run("admin", "a", b"r", make)
    assert make.asked == 5
