"""Every state that a power cut may leave, at every moment of several lives, is recovered without loss."""

import random
from collections.abc import Iterator

import pytest

from snapshots.disk_model import Image
from snapshots.journal import JournalOptions
from snapshots.memory_storage import CrashState, MemoryStorage, crash_states
from snapshots.recovery import Decision
from tests.snapshots.scenario import SMALL, Life, Promise, judge, lead_a_life

SEEDS = range(6)
RECOVERIES_CUT = 120


async def lead_a_random_life(life: Life, chance: random.Random) -> Life:
    """Thirty steps of commits, snapshots, kills and orderly ends."""
    await life.open()
    for _ in range(30):
        step = chance.choices(("commit", "snapshot", "kill", "close"), (12, 4, 2, 1))[0]
        if step == "commit":
            await life.commit(chance.choice((1, 1, 2, 9, 30)))
        elif step == "snapshot":
            await life.snapshot()
        else:
            if step == "kill":
                await life.die_before(chance.choice(("write", "fdatasync")), chance.randrange(1, 12))
            else:
                await life.close()
            await life.open()
    await life.close()
    return life


async def test_a_power_cut_at_any_moment_of_a_scripted_life_loses_nothing(report) -> None:
    life = await lead_a_life(Life(MemoryStorage()))
    states = list(crash_states(life.storage.trace))
    cut = 0
    for state in states:
        cut += judge(state, life.ever).found.decision is Decision.CUT_TAIL
    report(f"crash states of the scripted life: {len(states)}, {cut} of them with a torn tail")
    assert len(states) > 300
    assert cut > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_power_cut_at_any_moment_of_a_random_life_loses_nothing(seed: int, report) -> None:
    chance = random.Random(seed)
    options = JournalOptions(**{**SMALL, "segment_mib": chance.choice((1 / 256, 1 / 64))})
    life = await lead_a_random_life(Life(MemoryStorage(), options=options), chance)
    count = 0
    for state in crash_states(life.storage.trace):
        judge(state, life.ever, options=options)
        count += 1
    report(f"crash states of random life {seed}: {count}")


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
    storage = journal._storage
    return {storage.read(name, 0, 1 << 20) for name in storage.names("quarantine")}
