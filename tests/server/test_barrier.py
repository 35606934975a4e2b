"""The barrier before a read on a follower."""

import asyncio

from server.replication.barrier import BARRIER, Barrier
from server.replication.messages import Answer


def answer(lsn: int, *, is_refusal: bool = False) -> Answer:
    return Answer(BARRIER, lsn, b"", is_refusal)


async def begun(*tasks: "asyncio.Task[None]") -> list[bool]:
    """Let everything that can run do so; return which tasks are done."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_a_read_passes_once_what_was_spoken_of_is_applied() -> None:
    asked: list[int] = []
    barrier = Barrier(lambda: asked.append(1))
    read = asyncio.create_task(barrier.passed())
    assert await begun(read) == [False]
    barrier.answered(answer(7), 5)
    assert await begun(read) == [False]
    barrier.applied(6)
    assert await begun(read) == [False]
    barrier.applied(7)
    assert await begun(read) == [True]
    assert asked == [1]


async def test_who_comes_while_a_question_is_under_way_shares_the_next() -> None:
    asked: list[int] = []
    barrier = Barrier(lambda: asked.append(1))
    first = asyncio.create_task(barrier.passed())
    await begun(first)
    later = [asyncio.create_task(barrier.passed()) for _ in range(100)]
    await begun(*later)
    assert asked == [1]
    barrier.answered(answer(3), 3)
    assert await begun(first, later[0]) == [True, False], "the answer is older than the later questions"
    assert asked == [1, 1]
    barrier.answered(answer(4), 4)
    assert all(await begun(*later))
    assert asked == [1, 1]


async def test_a_primary_that_may_not_speak_holds_up_nobody_and_it_shows() -> None:
    barrier = Barrier(lambda: None)
    read = asyncio.create_task(barrier.passed())
    await begun(read)
    barrier.answered(answer(9, is_refusal=True), 0)
    assert (await begun(read), barrier.is_answered) == ([True], False)
    again = asyncio.create_task(barrier.passed())
    await begun(again)
    barrier.answered(answer(9), 9)
    assert (await begun(again), barrier.is_answered) == ([True], True)


async def test_when_the_link_is_lost_everybody_passes() -> None:
    barrier = Barrier(lambda: None)
    reads = [asyncio.create_task(barrier.passed()) for _ in range(3)]
    await begun(*reads)
    reads.append(asyncio.create_task(barrier.passed()))
    await begun(*reads)
    barrier.give_up()
    assert all(await begun(*reads))


async def test_a_reader_that_goes_away_takes_nobody_with_it() -> None:
    barrier = Barrier(lambda: None)
    reads = [asyncio.create_task(barrier.passed()) for _ in range(3)]
    await begun(*reads)
    barrier.answered(answer(1), 1)
    reads[1].cancel()
    await begun(*reads)
    barrier.answered(answer(2), 2)
    assert all(await begun(*reads))
    assert reads[1].cancelled() and not reads[2].cancelled()
