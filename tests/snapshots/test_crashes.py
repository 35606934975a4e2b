"""Every state that a power cut may leave, at every moment of several lives, is recovered without loss."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshots.disk_model import Image
from snapshots.journal import JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage, crash_states
from snapshots.recovery import Decision
from tests.snapshots.scenario import SMALL, Life, Promise, judge, lead_a_life

EXAMPLES = 40
RECOVERIES_CUT = 120


STEPS = st.one_of(
    st.tuples(st.just("commit"), st.integers(1, 40)),
    st.tuples(st.just("commit"), st.integers(1, 3)),
    st.just(("snapshot", 0)),
    st.tuples(st.sampled_from(("die before write", "die before fdatasync")), st.integers(1, 12)),
    st.just(("end", 0)),
)


async def lead(life: Life, steps: list[tuple[str, int]]) -> None:
    """Take the steps of a life, opening again after each end, and end in good order."""
    await life.open()
    for step, count in steps:
        if step == "commit":
            await life.commit(count)
        elif step == "snapshot":
            await life.snapshot()
        else:
            await (life.close() if step == "end" else life.die_before(step.split()[-1], count))
            await life.open()
    await life.close()


async def test_a_power_cut_at_any_moment_of_a_scripted_life_loses_nothing(report) -> None:
    life = await lead_a_life(Life(MemoryStorage()))
    states = list(crash_states(life.storage.trace))
    cut = 0
    for state in states:
        cut += judge(state, life.ever).found.decision is Decision.CUT_TAIL
    report(f"crash states of the scripted life: {len(states)}, {cut} of them with a torn tail")
    assert len(states) > 300
    assert cut > 50


counted: list[int] = []


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=4, max_size=24), st.sampled_from((1 / 256, 1 / 64)))
def test_a_power_cut_at_any_moment_of_any_life_loses_nothing(steps: list[tuple[str, int]], segment_mib: float) -> None:
    options = JournalOptions(**{**SMALL, "segment_mib": segment_mib})
    life = Life(MemoryStorage(), options=options)
    asyncio.run(lead(life, steps))
    states = list(crash_states(life.storage.trace))
    for state in states:
        judge(state, life.ever, options=options)
    counted.append(len(states))


def test_the_lives_that_were_led_are_counted(report: Callable[[str], None]) -> None:
    report(f"crash states of {len(counted)} random lives: {sum(counted)}")


def cut_short(image: Image, promise: object, ever: dict[int, set[str]]) -> Iterator[CrashState]:
    """Yield the states a second power cut may leave while the first one is being recovered from."""
    storage = MemoryStorage(image)
    storage.mark(promise)
    judged = judge(CrashState(0, promise, image), ever)
    assert judged is not None
    journal_class = type(judged)
    journal_class.open(storage, JournalOptions(**SMALL))
    yield from crash_states(storage.trace, image)


@pytest.mark.slow
async def test_a_recovery_killed_at_any_moment_and_run_again_comes_to_the_same_end(report) -> None:
    life = await lead_a_life(Life(MemoryStorage()))
    torn = [state for state in crash_states(life.storage.trace) if must_cut(state)]
    chosen = torn[:: max(1, len(torn) // RECOVERIES_CUT)]
    count = 0
    for state in chosen:
        first = judge(state, life.ever)
        tail = evidence(first)
        for again in cut_short(state.image, state.promised or Promise(), life.ever):
            second = judge(again, life.ever)
            assert second.last_lsn == first.last_lsn, "the second run comes to another end"
            assert tail <= evidence(second), "evidence is lost"
            count += 1
    report(f"recoveries killed at every moment: {len(chosen)}, states they left: {count}")
    assert count > 1_000


def must_cut(state: CrashState) -> bool:
    from_image = MemoryStorage(state.image)
    return bool(journal_of(from_image).found.torn_bytes)


def journal_of(storage: MemoryStorage):
    return Life(storage).journal_class.open(storage, JournalOptions(**SMALL))


def evidence(journal) -> set[bytes]:
    """Return the contents of the quarantine folder."""
    storage = journal.storage
    return {storage.read(name, 0, 1 << 20) for name in storage.names("quarantine")}
