"""The virtual loop: time jumps, seeds repeat, nothing waits for ever, and a dead process does nothing at all."""

import asyncio
import contextvars
from random import Random

import pytest

from tests.simulation.virtual_loop import BEGINNING_S, OWNER, Deadlock, Group, OutOfBounds, VirtualLoop, Work, lead


def spawn(loop: VirtualLoop, group: Group, coroutine: object) -> "asyncio.Task[object]":
    context = contextvars.copy_context()
    context.run(OWNER.set, group)
    return loop.create_task(coroutine, context=context)  # type: ignore[arg-type]


def test_an_hour_of_sleep_takes_no_time_and_timers_go_off_in_order() -> None:
    async def life(loop: VirtualLoop) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def sleeper(name: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            seen.append((name, loop.time() - BEGINNING_S))

        await asyncio.gather(sleeper("late", 3000), sleeper("early", 0.25), sleeper("between", 10))
        return seen

    assert lead(1, life) == [("early", 0.25), ("between", 10), ("late", 3000)]


def test_a_timeout_goes_off_at_its_moment() -> None:
    async def life(loop: VirtualLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.sleep(5)
        return loop.time() - BEGINNING_S

    assert lead(1, life) == 2


def test_a_wait_for_what_never_comes_is_an_error_that_names_who_waits() -> None:
    async def life(loop: VirtualLoop) -> None:
        asyncio.current_task().set_name("the one who waits")  # type: ignore[union-attr]
        await loop.create_future()

    with pytest.raises(Deadlock, match="the one who waits"):
        lead(1, life)


def test_a_life_that_does_not_end_is_an_error() -> None:
    async def busy(loop: VirtualLoop) -> None:
        for _ in range(10_000):
            await asyncio.sleep(0)

    async def patient(loop: VirtualLoop) -> None:
        for _ in range(10_000):
            await asyncio.sleep(100)

    with pytest.raises(OutOfBounds, match="steps"):
        lead(1, busy, max_steps=1000)
    with pytest.raises(OutOfBounds, match="not over"):
        lead(1, patient, max_virtual_s=1000)


async def a_crowd(loop: VirtualLoop) -> list[tuple[int, int, float]]:
    """Let five processes work in threads at once, and return the order in which they got on."""
    seen: list[tuple[int, int, float]] = []

    async def walker(number: int) -> None:
        for step in range(5):
            await (asyncio.sleep(0) if step % 2 else asyncio.to_thread(lambda: None))
            seen.append((number, step, round(loop.time(), 9)))

    await asyncio.gather(*(spawn(loop, Group(str(number)), walker(number)) for number in range(5)))
    return seen


def test_a_seed_repeats_its_life_and_another_one_leads_another() -> None:
    lives = [lead(seed, a_crowd) for seed in (1, 2, 1)]
    assert lives[0] == lives[2]
    assert [its[:2] for its in lives[0]] != [its[:2] for its in lives[1]]


def test_callbacks_of_one_process_keep_their_order_and_those_of_several_do_not() -> None:
    async def life(loop: VirtualLoop) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        for number in range(3):
            for name in "ab":
                context = contextvars.copy_context()
                context.run(OWNER.set, groups[name])
                loop.call_soon(seen.append, (name, number), context=context)
        await asyncio.sleep(0.1)
        return seen

    first = set()
    for seed in range(20):
        groups = {name: Group(name) for name in "ab"}
        seen = lead(seed, life)
        for name in "ab":
            assert [number for its, number in seen if its == name] == [0, 1, 2]
        first.add(seen[0][0])
    assert first == {"a", "b"}


def test_work_for_a_thread_takes_time_and_is_done_at_its_beginning_or_at_its_end() -> None:
    async def life(loop: VirtualLoop) -> tuple[float, float]:
        began = loop.time()
        done = await asyncio.to_thread(loop.time)
        return done - began, loop.time() - began

    lives = [lead(seed, life) for seed in range(40)]
    assert all(took > 0 and done in (0, took) for done, took in lives)
    assert {done == 0 for done, _ in lives} == {True, False}


def test_work_that_raises_raises_where_it_is_awaited() -> None:
    async def life(loop: VirtualLoop) -> None:
        await asyncio.to_thread(int, "no number")

    with pytest.raises(ValueError, match="no number"):
        lead(1, life)


def test_a_dead_process_does_nothing_more_not_even_its_finally() -> None:
    done: list[str] = []

    async def process() -> None:
        try:
            while True:
                done.append("step")
                await asyncio.sleep(1)
        finally:
            done.append("finally")

    async def life(loop: VirtualLoop) -> None:
        group = Group("it")
        spawn(loop, group, process())
        await asyncio.sleep(2.5)
        group.is_dead = True
        await asyncio.sleep(10)
        assert done == ["step"] * 3
        loop.bury(group)

    lead(1, life)


def test_a_frozen_process_does_nothing_and_goes_on_with_all_that_came_meanwhile_when_thawed() -> None:
    async def life(loop: VirtualLoop) -> list[float]:
        seen: list[float] = []

        async def process() -> None:
            for _ in range(3):
                await asyncio.sleep(1)
                seen.append(loop.time() - BEGINNING_S)

        group = Group("it")
        task = spawn(loop, group, process())
        await asyncio.sleep(1.5)
        group.is_frozen = True
        await asyncio.sleep(5)
        assert len(seen) == 1
        loop.thaw(group)
        await task
        return seen

    assert lead(1, life) == [1, 6.5, 7.5]


def test_work_of_a_dead_process_is_left_to_whoever_brings_it_down() -> None:
    async def life(loop: VirtualLoop) -> tuple[int, int]:
        group, calls = Group("it"), []
        context = contextvars.copy_context()
        context.run(OWNER.set, group)
        work = context.run(lambda: Work(loop.create_future(), calls.append, (OWNER.get(),)))
        context.run(lambda: loop.do_work(work, at_its_end=True))
        group.is_dead = True
        await asyncio.sleep(1)
        unfinished = len(group.work)
        group.work[0].run()
        assert calls == [group]
        return unfinished, len(calls)

    assert lead(1, life) == (1, 1)


def test_what_nobody_looked_at_is_kept_as_a_complaint() -> None:
    async def life(loop: VirtualLoop) -> list[str]:
        async def fails() -> None:
            raise ValueError("seen by nobody")

        loop.create_task(fails())
        await asyncio.sleep(1)
        return loop.complaints

    assert any("seen by nobody" in its for its in lead(1, life))


def test_the_randomness_of_the_loop_is_its_own() -> None:
    async def life(loop: VirtualLoop) -> float:
        return loop.random.random()

    assert lead(7, life) == Random(7).random()
