"""The history checker is tested on what it must find: every mutation of a valid history is found, and nothing else."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.scenarios.faultless import BATCH, INTERVAL_MS, STEPS, a_long_life, lead
from tests.scenarios.history import (
    LIVE,
    Entry,
    Evidence,
    FinalPlace,
    Limits,
    LogLine,
    check,
)

Mutation: TypeAlias = Callable[[Evidence, random.Random], Evidence | None]

# ---- mutations ----------------------------------------------------------------------------------------


def pick(candidates: list[int], chance: random.Random) -> int | None:
    return chance.choice(candidates) if candidates else None


def of_kind(evidence: Evidence, *kinds: str) -> list[int]:
    return [index for index, line in enumerate(evidence.log) if line.kind in kinds]


def of_op(evidence: Evidence, *ops: str) -> list[int]:
    return [i for i, entry in enumerate(evidence.entries) if entry.op in ops and entry.answered_s is not None]


def with_line(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    log = [LogLine(**{name: getattr(line, name) for name in line.__struct_fields__}) for line in evidence.log]
    for name, value in changes.items():
        setattr(log[index], name, value)
    return replace(evidence, log=log)


def without_line(evidence: Evidence, index: int) -> Evidence:
    return replace(evidence, log=[*evidence.log[:index], *evidence.log[index + 1 :]])


def with_entry(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    entries = list(evidence.entries)
    entries[index] = entries[index]._replace(**changes)
    return replace(evidence, entries=entries)


def drop_a_place_from_the_state(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "join"), chance)
    if at is None:
        return None
    gone = evidence.entries[at].arrival
    return replace(evidence, final={arrival: place for arrival, place in evidence.final.items() if arrival != gone})


def drop_a_join_from_the_log(evidence: Evidence, chance: random.Random) -> Evidence | None:
    acknowledged = {evidence.entries[at].arrival for at in of_op(evidence, "join")}
    at = pick([at for at in of_kind(evidence, "joined") if evidence.log[at].arrival in acknowledged], chance)
    return None if at is None else without_line(evidence, at)


def drop_a_leave_from_the_log(evidence: Evidence, chance: random.Random) -> Evidence | None:
    acknowledged = {evidence.entries[at].arrival for at in of_op(evidence, "leave")}
    at = pick([at for at in of_kind(evidence, "left") if evidence.log[at].arrival in acknowledged], chance)
    return None if at is None else without_line(evidence, at)


def drop_a_completion_from_the_log(evidence: Evidence, chance: random.Random) -> Evidence | None:
    acknowledged = {evidence.entries[at].arrival for at in of_op(evidence, "complete")}
    at = pick([at for at in of_kind(evidence, "completed") if evidence.log[at].arrival in acknowledged], chance)
    return None if at is None else without_line(evidence, at)


def write_a_join_twice(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "joined"), chance)
    if at is None:
        return None
    return replace(evidence, log=[*evidence.log[: at + 1], evidence.log[at], *evidence.log[at + 1 :]])


def give_somebody_a_second_place(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([arrival for arrival, place in evidence.final.items() if place.status in LIVE], chance)
    if at is None:
        return None
    user_id, arrival = evidence.final[at].user_id, len(evidence.final) + 1
    lsn = evidence.log[-1].lsn + 1
    line = LogLine(lsn, "joined", arrival=arrival, key=arrival << 32 | arrival, user_id=user_id)
    final = {**evidence.final, arrival: FinalPlace(user_id, arrival, "waiting")}
    return replace(evidence, log=[*evidence.log, line], final=final)


def answer_a_retry_with_another_place(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "join"), chance)
    if at is None:
        return None
    first = evidence.entries[at]
    others = [e for e in map(evidence.entries.__getitem__, of_op(evidence, "join")) if e.arrival != first.arrival]
    if not others:
        return None
    entries = [*evidence.entries, chance.choice(others)._replace(key=first.key)]
    return replace(evidence, entries=entries)


def give_a_number_to_two(evidence: Evidence, chance: random.Random) -> Evidence | None:
    joins = of_op(evidence, "join")
    at, other = pick(joins, chance), pick(joins, chance)
    if at is None or other is None or evidence.entries[at].number == evidence.entries[other].number:
        return None
    return with_entry(evidence, at, number=evidence.entries[other].number)


def swap_two_who_came_one_after_the_other(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Exchange the moments of two joins, so that nothing but the times can tell."""
    times = Counter(entry.user_id for entry in evidence.entries if entry.op == "join")
    once = [at for at in of_op(evidence, "join") if times[evidence.entries[at].user_id] == 1]
    pairs = [(a, b) for a in once for b in once if (evidence.entries[a].answered_s or 0) < evidence.entries[b].sent_s]
    if not pairs:
        return None
    a, b = chance.choice(pairs)
    one, two = evidence.entries[a], evidence.entries[b]
    swapped = with_entry(evidence, a, sent_s=two.sent_s, answered_s=two.answered_s)
    return with_entry(swapped, b, sent_s=one.sent_s, answered_s=one.answered_s)


def raise_one_number(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "join", "position"), chance)
    return None if at is None else with_entry(evidence, at, number=evidence.entries[at].number + 1)


def swap_two_in_the_log(evidence: Evidence, chance: random.Random) -> Evidence | None:
    joins = of_kind(evidence, "joined")
    at = pick(list(range(len(joins) - 1)), chance)
    if at is None:
        return None
    a, b = joins[at], joins[at + 1]
    one, two = evidence.log[a], evidence.log[b]
    swapped = with_line(evidence, a, arrival=two.arrival, key=two.key, user_id=two.user_id)
    return with_line(swapped, b, arrival=one.arrival, key=one.key, user_id=one.user_id)


def resurrect_one_who_left(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "leave", "complete"), chance)
    if at is None:
        return None
    arrival = evidence.entries[at].arrival
    return replace(
        evidence,
        final={**evidence.final, arrival: evidence.final[arrival]._replace(status=chance.choice(sorted(LIVE)))},
    )


def show_one_who_left_in_line(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "leave"), chance)
    if at is None:
        return None
    end = evidence.entries[at]
    later = (end.answered_s or 0) + 1
    shown = Entry(9, "position", later, later + 1, end.user_id, "", end.number, end.arrival, "ready")
    return replace(evidence, entries=[*evidence.entries, shown])


def release_one_who_stood_further_back(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "released"), chance)
    if at is None:
        return None
    line = evidence.log[at]
    behind = [m.arrival for m in evidence.log[:at] if m.kind == "joined" and m.arrival > line.numbers[-1]]
    if not behind:
        return None
    return with_line(evidence, at, numbers=[*line.numbers[:-1], chance.choice(behind)])


def step_over_the_head(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_kind(evidence, "released") if len(evidence.log[at].numbers) > 1], chance)
    return None if at is None else with_line(evidence, at, numbers=evidence.log[at].numbers[1:])


def lower_the_cap(evidence: Evidence, chance: random.Random) -> Evidence | None:
    inside = most = 0
    status: dict[int, str] = {}
    for line in evidence.log:
        status |= dict.fromkeys(line.numbers, "ready")
        if line.kind in ("left", "completed"):
            status[line.arrival] = "ended"
        inside = sum(its == "ready" for its in status.values())
        most = max(most, inside)
    at = of_kind(evidence, "configured")[0]
    return with_line(evidence, at, settings=Limits(most - 1, BATCH, INTERVAL_MS // 1000)) if most else None


def bring_two_batches_together(evidence: Evidence, chance: random.Random) -> Evidence | None:
    batches = [at for at in of_kind(evidence, "released") if not evidence.log[at].manual]
    full = [(a, b) for a, b in pairwise(batches) if len(evidence.log[a].numbers) + len(evidence.log[b].numbers) > BATCH]
    if not full:
        return None
    a, b = chance.choice(full)
    return with_line(evidence, b, at_ms=evidence.log[a].at_ms + INTERVAL_MS - 1)


def observe_a_batch_too_much(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(list(range(len(evidence.observed))), chance)
    if at is None:
        return None
    look = evidence.observed[at]
    extra = look._replace(answered_s=look.answered_s + 0.005, released=look.released + BATCH + 1)
    return replace(evidence, observed=[*evidence.observed[: at + 1], extra, *evidence.observed[at + 1 :]])


def begin_an_epoch_twice(evidence: Evidence, chance: random.Random) -> Evidence | None:
    starts = of_kind(evidence, "started")
    if len(starts) < 2:
        return None
    at = chance.randrange(1, len(starts))
    return with_line(evidence, starts[at], epoch=evidence.log[starts[at - 1]].epoch)


def tell_an_epoch_twice(evidence: Evidence, chance: random.Random) -> Evidence | None:
    return replace(evidence, epochs=[*evidence.epochs, evidence.epochs[-1]])


def tell_an_epoch_that_is_not_on_record(evidence: Evidence, chance: random.Random) -> Evidence | None:
    return replace(evidence, epochs=[*evidence.epochs, evidence.epochs[-1] + 7])


def show_a_client_something_older(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_op(evidence, "join", "position") if evidence.entries[at].version], chance)
    if at is None:
        return None
    entry = evidence.entries[at]
    newest = max(e.answered_s or 0 for e in evidence.entries)
    old = entry._replace(sent_s=newest + 1, answered_s=newest + 2, version=(entry.version or 0) - 1)
    return replace(evidence, entries=[*evidence.entries, old])


def tell_a_wrong_position(evidence: Evidence, chance: random.Random) -> Evidence | None:
    shown = [at for at in of_op(evidence, "join", "position") if evidence.entries[at].position]
    at = pick(shown, chance)
    if at is None:
        return None
    return with_entry(evidence, at, position=(evidence.entries[at].position or 0) + chance.choice((-1, 1)))


def tell_a_release_that_was_not(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_op(evidence, "release") if evidence.entries[at].number], chance)
    return None if at is None else with_entry(evidence, at, number=evidence.entries[at].number + 1)


def release_twice_under_one_key(evidence: Evidence, chance: random.Random) -> Evidence | None:
    told = {evidence.entries[at].key for at in of_op(evidence, "release") if evidence.entries[at].key}
    at = pick([at for at in of_kind(evidence, "released") if evidence.log[at].request in told], chance)
    others = [other for other in of_kind(evidence, "released") if other != at and evidence.log[other].manual]
    if at is None or not others:
        return None
    return with_line(evidence, chance.choice(others), request=evidence.log[at].request)


MUTATIONS: dict[Mutation, set[str]] = {
    drop_a_place_from_the_state: {"lost"},
    drop_a_join_from_the_log: {"lost"},
    drop_a_leave_from_the_log: {"lost"},
    drop_a_completion_from_the_log: {"lost"},
    write_a_join_twice: {"duplicated"},
    give_somebody_a_second_place: {"duplicated"},
    answer_a_retry_with_another_place: {"duplicated"},
    give_a_number_to_two: {"duplicated"},
    swap_two_who_came_one_after_the_other: {"reordered"},
    swap_two_in_the_log: {"reordered"},
    raise_one_number: {"lost"},
    resurrect_one_who_left: {"resurrected"},
    show_one_who_left_in_line: {"resurrected"},
    release_one_who_stood_further_back: {"skipped"},
    step_over_the_head: {"skipped"},
    lower_the_cap: {"over_cap"},
    bring_two_batches_together: {"over_rate"},
    observe_a_batch_too_much: {"over_rate"},
    begin_an_epoch_twice: {"epoch"},
    tell_an_epoch_twice: {"epoch"},
    tell_an_epoch_that_is_not_on_record: {"epoch"},
    show_a_client_something_older: {"went_back"},
    tell_a_wrong_position: {"wrong_rank"},
    tell_a_release_that_was_not: {"lost"},
    release_twice_under_one_key: {"duplicated"},
}


# ---- tests --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=80), st.integers(0, 2**32))
def test_nothing_is_found_in_a_valid_history(steps: list[str], seed: int) -> None:
    report = check(lead(steps, seed))
    assert report.ok, report.explain()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_every_mutation_of_a_valid_history_is_found(mutation: Mutation, seed: int) -> None:
    mutated = mutation(a_long_life(seed), random.Random(seed))
    assume(mutated is not None)
    assert mutated is not None
    report = check(mutated)
    assert report.found() >= MUTATIONS[mutation], report.explain()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_each_mutation_can_be_made(mutation: Mutation) -> None:
    made = 0
    for seed in range(6):
        mutated = mutation(a_long_life(seed), random.Random(seed))
        made += mutated is not None and check(mutated).found() >= MUTATIONS[mutation]
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
