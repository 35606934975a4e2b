"""The history checker is tested on what it must find: every mutation of a valid history is found, and nothing else."""

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.scenarios.faultless import STEPS, a_long_life, lead
from tests.scenarios.history import KINDS_OF_FAULT, Entry, Evidence, FinalPlace, LogLine, check
from tests.scenarios.mutations import MUTATIONS, Mutation
from tests.scenarios.mutations_of_passes import MUTATIONS_OF_PASSES
from tests.scenarios.plain_line import MOVES

ALL = MUTATIONS | MUTATIONS_OF_PASSES


def test_every_kind_of_fault_has_a_mutation() -> None:
    assert set().union(*ALL.values()) == set(KINDS_OF_FAULT)


def test_a_long_life_has_every_kind_of_record_that_a_sale_without_a_lobby_has() -> None:
    kinds = {f"{line.kind} {line.cause}".strip() for seed in range(10) for line in a_long_life(seed).log}
    events = {"started", "configured", "opened", "paused", "resumed", "joined", "parked", "released", "banned"}
    assert kinds == events | set(MOVES) - {"completed late"}


@settings(deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=80), st.integers(0, 2**32))
def test_nothing_is_found_in_a_valid_history(steps: list[str], seed: int) -> None:
    report = check(lead(steps, seed))
    assert report.ok, report.explain()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.__name__)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_every_mutation_of_a_valid_history_is_found(mutation: Mutation, seed: int) -> None:
    mutated = mutation(a_long_life(seed), random.Random(seed))
    assume(mutated is not None)
    assert mutated is not None
    report = check(mutated)
    assert report.found() >= ALL[mutation], report.explain()


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.__name__)
def test_each_mutation_can_be_made(mutation: Mutation) -> None:
    made = 0
    for seed in range(6):
        mutated = mutation(a_long_life(seed), random.Random(seed))
        made += mutated is not None and check(mutated).found() >= ALL[mutation]
    assert made


def test_joins_that_overlap_in_time_may_stand_in_either_order() -> None:
    log = [LogLine(n, "joined", arrival=n, key=n << 32 | n, user_id=f"u{n}") for n in (1, 2)]
    entries = [
        Entry(1, "join", 1.0, 3.0, "u2", "k2", 2, 2, "waiting", 2, 0, 2),
        Entry(2, "join", 2.0, 2.5, "u1", "k1", 1, 1, "waiting", 1, 0, 1),
    ]
    final = {n: FinalPlace(f"u{n}", n, "waiting") for n in (1, 2)}
    report = check(Evidence([e._replace(epoch=None) for e in entries], log, final))
    assert report.ok, report.explain()


def test_a_join_that_was_never_answered_may_be_there_or_not() -> None:
    log = [LogLine(1, "joined", arrival=1, key=1 << 32 | 1, user_id="u1")]
    entries = [Entry(1, "join", 1.0, None, "u1", "k1"), Entry(1, "join", 2.0, None, "u2", "k2")]
    report = check(Evidence(entries, log, {}))
    assert report.ok, report.explain()
    assert report.acknowledged == 0


def test_a_retry_after_leaving_may_get_a_new_place() -> None:
    log = [
        LogLine(1, "joined", arrival=1, key=1 << 32 | 1, user_id="u1"),
        LogLine(2, "left", arrival=1),
        LogLine(3, "joined", arrival=2, key=2 << 32 | 2, user_id="u1"),
    ]
    entries = [
        Entry(1, "join", 1.0, 2.0, "u1", "k1", 1, 1, "waiting", 1, None, 1),
        Entry(1, "leave", 3.0, 4.0, "u1", "", 1, 1),
        Entry(1, "join", 5.0, 6.0, "u1", "k1", 2, 2, "waiting", 1, None, 3),
    ]
    final = {1: FinalPlace("u1", 1, "left"), 2: FinalPlace("u1", 2, "waiting")}
    report = check(Evidence(entries, log, final))
    assert report.ok, report.explain()
    assert "acked 3 (2 joins), lost 0, duplicated 0, reordered 0" in report.summary()
