"""What must be found, part one: faults put into a valid history, of places, the line and the pace.

A mutation returns a history with one fault in it, or None where the history has nothing that it could spoil.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec

from tests.scenarios.faultless import BATCH, INTERVAL_MS, LIMITS
from tests.scenarios.history import ENDED, INSIDE, LIVE, Entry, Evidence, FinalPlace, LogLine

Mutation: TypeAlias = Callable[[Evidence, random.Random], Evidence | None]


def pick(candidates: list[int], chance: random.Random) -> int | None:
    return chance.choice(candidates) if candidates else None


def of_kind(evidence: Evidence, *kinds: str) -> list[int]:
    return [index for index, line in enumerate(evidence.log) if line.kind in kinds]


def of_op(evidence: Evidence, *ops: str) -> list[int]:
    """Return where operations were answered, and not refused."""
    entries = enumerate(evidence.entries)
    return [at for at, entry in entries if entry.op in ops and entry.answered_s is not None and not entry.refusal]


def of_line(line: LogLine) -> list[int]:
    """Return the arrivals that a record is about."""
    return line.numbers or [line.arrival]


def with_line(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    changed = msgspec.structs.replace(evidence.log[index], **changes)
    return replace(evidence, log=[*evidence.log[:index], changed, *evidence.log[index + 1 :]])


def without_line(evidence: Evidence, index: int) -> Evidence:
    return replace(evidence, log=[*evidence.log[:index], *evidence.log[index + 1 :]])


def with_entry(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    entries = list(evidence.entries)
    entries[index] = entries[index]._replace(**changes)
    return replace(evidence, entries=entries)


def with_new_line(evidence: Evidence, index: int, kind: str, **fields: Any) -> Evidence:
    """Return the evidence with one more record right after another one."""
    before = evidence.log[index]
    line = LogLine(before.lsn, kind, before.at_ms, **fields)
    return replace(evidence, log=[*evidence.log[: index + 1], line, *evidence.log[index + 1 :]])


def with_new_entry(evidence: Evidence, op: str, like: Entry, **changes: Any) -> Evidence:
    """Return the evidence with one more answer, asked for after all others had been given."""
    newest = max(entry.answered_s or 0 for entry in evidence.entries)
    entry = like._replace(client=9, op=op, sent_s=newest + 1, answered_s=newest + 2, epoch=None, **changes)
    return replace(evidence, entries=[*evidence.entries, entry])


def status_after(evidence: Evidence, index: int) -> dict[int, str]:
    """Return every place's status after so many records, by what a plain reading of their kinds says."""
    next_status = {"joined": "waiting", "returned": "waiting", "admitted": "ready", "lapsed": "parked"}
    next_status |= {"redeemed": "active"} | {kind: kind for kind in ("left", "removed", "completed", "expired")}
    status: dict[int, str] = {}
    for line in evidence.log[:index]:
        if line.kind in ("released", "parked"):
            status |= dict.fromkeys(line.numbers, "ready" if line.kind == "released" else "parked")
        elif line.kind in next_status:
            status[line.arrival] = next_status[line.kind]
    return status


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
    parked = {arrival for line in evidence.log if line.kind in ("parked", "lapsed") for arrival in of_line(line)}
    told = [at for at in of_op(evidence, "join", "position") if evidence.entries[at].position]
    shown = [at for at in told if evidence.entries[at].arrival not in parked]
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


def lower_the_cap(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Say that one fewer may be inside than were: by the cap, or by the margin below it."""
    turns = of_kind(evidence, "released", "admitted")
    if not turns:
        return None
    most = max(sum(its in INSIDE for its in status_after(evidence, at + 1).values()) for at in turns)
    margin = chance.choice((0, 2))
    lower = msgspec.structs.replace(LIMITS, max_active=most - 1 + margin, safety_margin=margin)
    return with_line(evidence, of_kind(evidence, "configured")[0], settings=lower)


def admit_somebody_when_it_is_full(evidence: Evidence, chance: random.Random) -> Evidence | None:
    full = []
    for index in of_kind(evidence, "released", "admitted"):
        status = status_after(evidence, index + 1)
        waiting = [arrival for arrival, its in status.items() if its == "waiting"]
        if waiting and sum(its in INSIDE for its in status.values()) == LIMITS.max_active:
            full.append((index, waiting))
    if not full:
        return None
    index, waiting = chance.choice(full)
    return with_new_line(evidence, index, "admitted", arrival=chance.choice(waiting))


def park_somebody_who_was_seen(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "parked"), chance)
    if at is None:
        return None
    line = evidence.log[at]
    seen_ms = line.at_ms - LIMITS.presence_timeout_s * 1000 + chance.choice((0, 1, 3_000))
    return with_line(evidence, at, last_seen_ms=[seen_ms, *line.last_seen_ms[1:]])


def park_somebody_who_asked(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Tell of an answer just before somebody was stepped over."""
    at = pick(of_kind(evidence, "parked"), chance)
    if at is None:
        return None
    line = evidence.log[at]
    arrival = chance.choice(line.numbers)
    asked = Entry(9, "position", 0, 0, evidence.final[arrival].user_id, "", arrival, arrival, version=line.lsn - 1)
    return with_new_entry(evidence, "position", asked, generation=99)


def park_somebody_further_back(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Step over one more, who stands behind all those let in."""
    found = []
    for at in of_kind(evidence, "parked"):
        line, after = evidence.log[at], evidence.log[at + 1 : at + 2]
        if after and after[0].kind == "released":
            status = status_after(evidence, at + 2)
            waiting = sorted(arrival for arrival, its in status.items() if its == "waiting")
            found += [(at, line, number) for number in waiting[1:] if number > max(line.numbers)]
    if not found:
        return None
    at, line, number = chance.choice(found)
    return with_line(evidence, at, numbers=[*line.numbers, number], last_seen_ms=[*line.last_seen_ms, 0])


def let_in_before_stepping_over(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Write a release before the parking of those in front of it."""
    pairs = [
        at
        for at in of_kind(evidence, "parked")
        if at + 1 < len(evidence.log)
        and evidence.log[at + 1].kind == "released"
        and evidence.log[at].numbers[0] < evidence.log[at + 1].numbers[-1]
    ]
    at = pick(pairs, chance)
    if at is None:
        return None
    one, two = evidence.log[at], evidence.log[at + 1]
    return replace(evidence, log=[*evidence.log[:at], two, one, *evidence.log[at + 2 :]])


def let_two_change_places(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_kind(evidence, "released") if len(evidence.log[at].numbers) > 1], chance)
    return None if at is None else with_line(evidence, at, numbers=evidence.log[at].numbers[::-1])


def stand_somewhere_else_after_coming_back(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Tell somebody who came back another position than that of their key."""
    since = {line.arrival: line.lsn for line in evidence.log if line.kind == "returned"}
    told = [
        at
        for at in of_op(evidence, "join", "position", "accept")
        if evidence.entries[at].status == "waiting"
        and since.get(evidence.entries[at].arrival, 2**60) <= (evidence.entries[at].version or 0)
    ]
    at = pick(told, chance)
    return None if at is None else with_entry(evidence, at, position=(evidence.entries[at].position or 0) + 1)


def return_somebody_who_waits(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "joined"), chance)
    return None if at is None else with_new_line(evidence, at, "returned", arrival=evidence.log[at].arrival)


def live_again_after_the_end(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Let something happen to a place that was completed, left or removed."""
    at = pick(of_kind(evidence, "completed", "left", "removed"), chance)
    if at is None:
        return None
    kind = chance.choice(("returned", "admitted", "left", "transferred", "lapsed"))
    return with_new_line(evidence, at, kind, arrival=evidence.log[at].arrival)


def let_in_one_who_had_ended(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "completed", "left", "removed", "expired"), chance)
    return None if at is None else with_new_line(evidence, at, "released", numbers=[evidence.log[at].arrival])


def tell_a_wrong_status(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_op(evidence, "join", "position", "accept") if evidence.entries[at].version], chance)
    if at is None:
        return None
    others = sorted({"waiting", "parked", "ready", "active", "completed"} - {evidence.entries[at].status})
    return with_entry(evidence, at, status=chance.choice(others))


def let_one_back_who_was_banned(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "banned"), chance)
    if at is None:
        return None
    arrival, user_id = len(evidence.final) + 1, evidence.log[at].user_id
    key = arrival << 32 | arrival
    return with_new_line(evidence, len(evidence.log) - 1, "joined", arrival=arrival, key=key, user_id=user_id)


def lose_an_admission(evidence: Evidence, chance: random.Random) -> Evidence | None:
    told = {evidence.entries[at].arrival for at in of_op(evidence, "admit")}
    let_in = Counter(number for line in evidence.log for number in line.numbers if line.kind == "released")
    let_in.update(line.arrival for line in evidence.log if line.kind == "admitted")
    once = {arrival for arrival in told if let_in[arrival] == 1}
    at = pick([at for at in of_kind(evidence, "admitted") if evidence.log[at].arrival in once], chance)
    return None if at is None else without_line(evidence, at)


def lose_a_removal(evidence: Evidence, chance: random.Random) -> Evidence | None:
    told = {evidence.entries[at].arrival for at in of_op(evidence, "remove")}
    at = pick([at for at in of_kind(evidence, "removed") if evidence.log[at].arrival in told], chance)
    return None if at is None else without_line(evidence, at)


def release_while_the_event_is_paused(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([at for at in of_kind(evidence, "released") if not evidence.log[at].manual], chance)
    return None if at is None else with_new_line(evidence, at - 1, "paused")


def show_another_end_than_is_on_record(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick([arrival for arrival, place in evidence.final.items() if place.status in ENDED], chance)
    if at is None:
        return None
    others = sorted(ENDED - {evidence.final[at].status})
    return replace(evidence, final={**evidence.final, at: evidence.final[at]._replace(status=chance.choice(others))})


MUTATIONS: dict[Mutation, set[str]] = {
    drop_a_place_from_the_state: {"lost"},
    drop_a_join_from_the_log: {"lost"},
    drop_a_leave_from_the_log: {"lost"},
    drop_a_completion_from_the_log: {"lost"},
    lose_an_admission: {"lost"},
    lose_a_removal: {"lost"},
    raise_one_number: {"lost"},
    tell_a_release_that_was_not: {"lost"},
    write_a_join_twice: {"duplicated"},
    give_somebody_a_second_place: {"duplicated"},
    answer_a_retry_with_another_place: {"duplicated"},
    give_a_number_to_two: {"duplicated"},
    release_twice_under_one_key: {"duplicated"},
    swap_two_who_came_one_after_the_other: {"reordered"},
    swap_two_in_the_log: {"reordered"},
    resurrect_one_who_left: {"resurrected"},
    show_one_who_left_in_line: {"resurrected"},
    live_again_after_the_end: {"resurrected"},
    release_one_who_stood_further_back: {"skipped"},
    step_over_the_head: {"skipped"},
    let_two_change_places: {"skipped"},
    let_in_one_who_had_ended: {"skipped"},
    park_somebody_who_was_seen: {"skipped"},
    park_somebody_who_asked: {"skipped"},
    park_somebody_further_back: {"skipped"},
    let_in_before_stepping_over: {"skipped"},
    stand_somewhere_else_after_coming_back: {"misplaced"},
    return_somebody_who_waits: {"misplaced"},
    lower_the_cap: {"over_cap"},
    admit_somebody_when_it_is_full: {"over_cap"},
    bring_two_batches_together: {"over_rate"},
    observe_a_batch_too_much: {"over_rate"},
    begin_an_epoch_twice: {"epoch"},
    tell_an_epoch_twice: {"epoch"},
    tell_an_epoch_that_is_not_on_record: {"epoch"},
    show_a_client_something_older: {"went_back"},
    tell_a_wrong_position: {"wrong_rank"},
    tell_a_wrong_status: {"wrong_status"},
    let_one_back_who_was_banned: {"banned"},
    release_while_the_event_is_paused: {"diverged"},
    show_another_end_than_is_on_record: {"diverged"},
}
