"""What must be found in a run of failovers: faults that a standby, its promotion or two primaries would make.

A mutation takes the evidence of a run in which nothing is wrong, and returns it with one fault in it.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import msgspec

from tests.scenarios.client import PlaceReply
from tests.scenarios.history import Evidence, FinalPlace, LogLine
from tests.scenarios.judging_failover import FIRST_CLIENT, entry_of

Mutation = Callable[[Evidence, random.Random], Evidence]


def of_flood(evidence: Evidence) -> list[int]:
    """Return where joins of the flood were answered."""
    entries = enumerate(evidence.entries)
    return [at for at, entry in entries if entry.client >= FIRST_CLIENT and entry.op == "join" and entry.answered_s]


def joined(evidence: Evidence) -> list[int]:
    """Return where the records of joins stand that the flood was answered."""
    told = {evidence.entries[at].arrival for at in of_flood(evidence)}
    return [at for at, line in enumerate(evidence.log) if line.kind == "joined" and line.arrival in told]


def lose_a_record(evidence: Evidence, chance: random.Random) -> Evidence:
    """An acknowledged join is not in the log of the new primary."""
    at = chance.choice(joined(evidence))
    return replace(evidence, log=[*evidence.log[:at], *evidence.log[at + 1 :]])


def lose_a_place(evidence: Evidence, chance: random.Random) -> Evidence:
    """A place is shown to nobody any more."""
    gone = evidence.entries[chance.choice(of_flood(evidence))].arrival
    return replace(evidence, final={at: place for at, place in evidence.final.items() if at != gone})


def lose_the_tail(evidence: Evidence, chance: random.Random) -> Evidence:
    """The new primary began behind the old one, and gave the same numbers out again."""
    promoted = [at for at, line in enumerate(evidence.log) if line.kind == "started"][-1]
    at = max(at for at in joined(evidence) if at < promoted)
    log = list(evidence.log[:at])
    for line in evidence.log[at + 1 :]:
        arrival = line.arrival - 1 if line.kind == "joined" else line.arrival
        key = arrival << 32 | arrival
        log.append(msgspec.structs.replace(line, lsn=line.lsn - 1, arrival=arrival, key=key))
    return replace(evidence, log=log)


def write_a_record_twice(evidence: Evidence, chance: random.Random) -> Evidence:
    """A join is applied twice."""
    at = chance.choice(joined(evidence))
    return replace(evidence, log=[*evidence.log[: at + 1], evidence.log[at], *evidence.log[at + 1 :]])


def answer_a_retry_with_another_place(evidence: Evidence, chance: random.Random) -> Evidence:
    """The new primary did not know the key, and gave the visitor a second place."""
    entry = evidence.entries[chance.choice(of_flood(evidence))]
    arrival, lsn = max(evidence.final) + 1, evidence.log[-1].lsn + 1
    place = PlaceReply("waiting", arrival, entry.user_id, arrival, arrival, "", None, lsn)
    second = entry_of("join", entry.client, entry.sent_s + 100, entry.sent_s + 101, place)._replace(key=entry.key)
    line = LogLine(lsn, "joined", arrival=arrival, key=arrival << 32 | arrival, user_id=entry.user_id)
    final = {**evidence.final, arrival: FinalPlace(entry.user_id, arrival, "waiting")}
    return Evidence([*evidence.entries, second], [*evidence.log, line], final, evidence.epochs)


def give_a_number_to_two(evidence: Evidence, chance: random.Random) -> Evidence:
    """Two primaries answered at the same time."""
    entries = list(evidence.entries)
    one, other = chance.sample(of_flood(evidence), 2)
    entries[one] = entries[one]._replace(number=entries[other].number)
    return replace(evidence, entries=entries)


def swap_two(evidence: Evidence, chance: random.Random) -> Evidence:
    """Somebody who asked after another one had been answered stands before them, everywhere."""
    answered = of_flood(evidence)
    early = chance.choice(answered[: len(answered) // 4])
    one = evidence.entries[early]
    late = next(at for at in answered if evidence.entries[at].sent_s > (one.answered_s or 0))
    other = evidence.entries[late]
    log = list(evidence.log)
    names = {one.arrival: other.user_id, other.arrival: one.user_id}
    for at, line in enumerate(log):
        if line.kind == "joined" and line.arrival in names:
            log[at] = msgspec.structs.replace(line, user_id=names[line.arrival])
    final = {at: place._replace(user_id=names.get(at, place.user_id)) for at, place in evidence.final.items()}
    entries = list(evidence.entries)
    told = {name: getattr(other, name) for name in ("number", "arrival", "position", "version")}
    entries[late] = other._replace(**{name: getattr(one, name) for name in told})
    entries[early] = one._replace(**told)
    return Evidence(entries, log, final, evidence.epochs)


def show_an_older_state(evidence: Evidence, chance: random.Random) -> Evidence:
    """A follower answers a visitor from before their own join, and does not call it stale."""
    entry = evidence.entries[chance.choice(of_flood(evidence)[10:])]
    assert entry.version is not None and entry.answered_s is not None
    sent_s = entry.answered_s + 0.1
    old = entry._replace(op="position", sent_s=sent_s, answered_s=sent_s + 0.1, version=entry.version - 5)
    return replace(evidence, entries=[*evidence.entries, old])


def answer_of_a_term_that_was_not(evidence: Evidence, chance: random.Random) -> Evidence:
    """The old primary goes on answering in a term of its own."""
    entries = list(evidence.entries)
    at = chance.choice(of_flood(evidence))
    entries[at] = entries[at]._replace(epoch=12345)
    return replace(evidence, entries=entries)


FAULTS: dict[Mutation, set[str]] = {
    lose_a_record: {"lost"},
    lose_a_place: {"lost"},
    lose_the_tail: {"lost"},
    write_a_record_twice: {"duplicated"},
    answer_a_retry_with_another_place: {"duplicated"},
    give_a_number_to_two: {"duplicated", "lost"},
    swap_two: {"reordered"},
    show_an_older_state: {"went_back"},
    answer_of_a_term_that_was_not: {"epoch"},
}
