"""The verdict on a run of failovers is tested on what it must find, and its figures on what they must come to."""

import random
from dataclasses import replace

import pytest

from tests.scenarios.client import PlaceReply
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Evidence, FinalPlace, Limits, LogLine, Report, check
from tests.scenarios.judging_failover import FIRST_CLIENT, Failover, Outcome, entries_of
from tests.scenarios.mutations_of_failovers import FAULTS, Mutation

RATE_PER_S = 100
TERM = 2**20
KILLED_S, RECOVERED_S = 2.0, 3.5
COUNT = 400


def a_join(index: int, arrival: int, lsn: int, answered_s: float, attempts: int) -> Join:
    """Return a join that was due in its turn and answered as the server of that time would."""
    join = Join(index, index / RATE_PER_S, index / RATE_PER_S, answered_s, attempts)
    epoch = TERM if answered_s < KILLED_S else 2 * TERM
    join.place = PlaceReply("waiting", arrival, join.user_id, arrival, arrival, "", epoch, lsn)
    return join


def a_run() -> tuple[list[Join], Evidence]:
    """Return a run in which the primary died after two seconds, and those of the gap were answered behind it."""
    log = [LogLine(1, "started", epoch=TERM), LogLine(2, "configured", settings=Limits()), LogLine(3, "opened")]
    joins: list[Join] = []
    moments = [(index, index / RATE_PER_S) for index in range(COUNT)]
    at_once = [(index, due_s) for index, due_s in moments if not KILLED_S <= due_s < RECOVERED_S]
    in_the_gap = [(index, due_s) for index, due_s in moments if KILLED_S <= due_s < RECOVERED_S]
    answers = [(due_s + 0.005, index, 1) for index, due_s in at_once]
    answers += [(RECOVERED_S + 0.002 + 0.001 * at, index, 4) for at, (index, _) in enumerate(in_the_gap)]
    for arrival, (answered_s, index, attempts) in enumerate(sorted(answers), 1):
        if arrival == KILLED_S * RATE_PER_S + 1:
            log.append(LogLine(len(log) + 1, "started", epoch=2 * TERM))
        lsn = len(log) + 1
        join = a_join(index, arrival, lsn, answered_s, attempts)
        log.append(LogLine(lsn, "joined", arrival=arrival, key=arrival << 32 | arrival, user_id=join.user_id))
        joins.append(join)
    joins.sort(key=lambda join: join.index)
    final = {line.arrival: FinalPlace(line.user_id, line.arrival, "waiting") for line in log if line.kind == "joined"}
    return joins, Evidence(list(entries_of(joins)), log, final, [2 * TERM])


def outcome_of(joins: list[Join], evidence: Evidence, report: Report) -> Outcome:
    flood = Flood(("http://127.0.0.1:1", "http://127.0.0.1:2"), RATE_PER_S, random.Random(1), joins=joins)
    flood.late_s = [0.0] * len(joins)
    return Outcome(report, flood, [Failover(TERM, KILLED_S, RECOVERED_S, 2 * TERM, 5.0)], evidence)


def test_a_run_in_which_nothing_was_lost_is_clean() -> None:
    _, evidence = a_run()
    report = check(evidence)
    assert report.ok, report.explain()
    assert report.joins == COUNT


def test_availability_is_that_of_an_hour_with_one_kill() -> None:
    joins, evidence = a_run()
    outcome = outcome_of(joins, evidence, check(evidence))
    assert outcome.wrong == 150
    assert outcome.availability() == 1 - 150 / (100 * 3600)
    table = outcome.table()
    assert "1.50 / 1.50 / 1.50 s" in table
    assert "99.9583%" in table


@pytest.mark.parametrize(
    ("answered_s", "attempts", "is_right"),
    [(0.9, 1, True), (0.9, 2, True), (0.9, 3, False), (1.1, 1, False), (None, 1, False)],
)
def test_an_answer_is_right_within_a_second_and_after_one_retry(
    answered_s: float | None, attempts: int, is_right: bool
) -> None:
    join = Join(0, 10.0, 10.2, None if answered_s is None else 10.0 + answered_s, attempts)
    assert join.is_right_within(1.0) is is_right


def test_who_was_never_answered_is_no_loss() -> None:
    joins, evidence = a_run()
    joins[7].answered_s = joins[7].place = None
    report = check(replace(evidence, entries=list(entries_of(joins))))
    assert report.ok, report.explain()
    assert report.joins == COUNT - 1


# ---- what must be found -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mutation", FAULTS, ids=lambda mutation: mutation.__name__)
def test_every_fault_is_found(mutation: Mutation, seed: int) -> None:
    _, evidence = a_run()
    report = check(mutation(evidence, random.Random(seed)))
    assert report.found() >= FAULTS[mutation], report.explain()


def test_everybody_of_the_flood_is_a_client_of_their_own() -> None:
    joins, _ = a_run()
    assert len({entry.client for entry in entries_of(joins)}) == COUNT
    assert min(entry.client for entry in entries_of(joins)) == FIRST_CLIENT
