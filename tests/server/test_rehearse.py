"""The failover drill: its judgement finds what is wrong, and a real pair passes it."""

import json
from collections.abc import Mapping

import pytest

from server.commands_rehearse import _told
from server.rehearsal_joins import Crowd, Join, judge, out_of_order
from tests.server.daemons import cli


def join(number: int, sent_s: float, answered_s: float, **more: object) -> Join:
    """Return a join that was due when it was sent, and answered at once or not at all (number 0)."""
    made = Join(f"u{number}", sent_s, sent_s, sent_s, answered_s, 1, number, f"token of {number}")
    for name, value in more.items():
        setattr(made, name, value)
    return made


def record(arrival: int, kind: str = "joined") -> Mapping[str, object]:
    return {"kind": kind, "user_id": f"u{arrival}", "arrival": arrival}


IN_ORDER = [join(1, 0.0, 0.5), join(3, 0.1, 0.9), join(2, 0.2, 0.3), join(4, 1.0, 1.1)]


def test_joins_that_overlap_may_stand_either_way() -> None:
    assert out_of_order(IN_ORDER) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        [join(2, 0.0, 0.5), join(1, 0.6, 0.9)],
        [join(7, 0.0, 0.1), join(8, 0.2, 0.3), join(3, 0.4, 0.5), join(9, 0.6, 0.7)],
        [join(5, 0.0, 0.5), join(5, 0.1, 0.9)],
    ],
    ids=["before somebody answered earlier", "in the middle", "one number twice"],
)
def test_who_stands_before_somebody_answered_earlier_is_found(wrong: list[Join]) -> None:
    assert out_of_order(wrong) == 1


def test_a_retry_may_tell_a_place_that_the_first_request_was_given() -> None:
    assert out_of_order([join(1, 0.0, 0.1), join(3, 0.5, 0.6), join(2, 0.05, 0.9, last_sent_s=0.8)]) == 0
    assert out_of_order([join(1, 0.0, 0.1), join(3, 0.5, 0.6), join(2, 0.7, 0.9, last_sent_s=0.8)]) == 1


def test_who_was_answered_and_is_not_in_the_log_is_lost_whatever_else_is_there() -> None:
    joins = [*IN_ORDER, join(0, 2.0, 0.0)]
    verdict = judge(joins, [record(1), record(3), record(2, "readmitted"), {"kind": "started"}, record(9)])
    assert [lost.number for lost in verdict.lost] == [4]
    assert (verdict.joins, verdict.acknowledged, verdict.out_of_order) == (5, 4, 0)
    assert judge(IN_ORDER, [{**record(number), "arrival": number % 4 + 1} for number in (1, 2, 3, 4)]).lost == IN_ORDER


def test_in_time_is_within_a_second_after_at_most_one_retry_and_rightly() -> None:
    joins = [
        join(1, 0.0, 0.9),
        join(2, 0.0, 0.9, attempts=2),
        join(3, 0.0, 0.9, attempts=3),
        join(4, 0.0, 1.1),
        join(0, 0.0, 0.5, complaint="500"),
    ]
    verdict = judge(joins, map(record, (1, 2, 3, 4)))
    assert (verdict.in_time, verdict.availability, verdict.complaints) == (2, 0.4, 1)
    assert verdict.availability_of_an_hour(kills=1, per_s=1) == 1 - 3 / 3600
    assert verdict.availability_of_an_hour(kills=3, per_s=1) == 1 - 1 / 3600


@pytest.mark.parametrize(
    ("mode", "joins", "recovery_s", "passes"),
    [
        ("sync", IN_ORDER, 1.5, True),
        ("sync", IN_ORDER, None, False),
        ("sync", [*IN_ORDER, join(5, 2.0, 2.1)], 1.5, False),
        ("async", [*IN_ORDER, join(5, 2.0, 2.1)], 1.5, True),
        ("async", [*IN_ORDER, join(5, 3.0, 3.1), join(4, 4.0, 4.1)], 1.5, False),
        ("sync", [*IN_ORDER, join(0, 2.0, 0.0)], 1.5, False),
    ],
    ids=["all kept", "nobody took over", "one lost", "one lost in async", "out of order", "one never answered"],
)
def test_what_passes_and_what_does_not(mode: str, joins: list[Join], recovery_s: float | None, passes: bool) -> None:
    verdict = judge(joins, map(record, (1, 2, 3, 4)))
    assert _told(mode, None, 1, [recovery_s], [], verdict, 0)["passed"] is passes


def test_recovery_counts_from_the_first_join_that_was_sent_after_the_kill() -> None:
    crowd = Crowd(("", ""), "e1", 1, None, joins=[join(1, 0.0, 1.2), join(2, 1.1, 1.9), join(3, 1.3, 1.8)])  # type: ignore[arg-type]
    assert crowd.first_answer_after(1.0) == 1.8
    assert crowd.first_answer_after(5.0) is None


def test_the_command_says_what_it_can_rehearse() -> None:
    for arguments in ([], ["--kill-primary", "--mode", "async", "--witness", "postgresql:///x"]):
        told = cli("rehearse", *arguments)
        assert told.returncode == 64 and "--" in told.stderr, told


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_pair_whose_primary_is_killed_passes_the_drill(mode: str) -> None:
    told = cli("rehearse", "--kill-primary", "--mode", mode, "--joins-per-s", "50", "--json")
    assert told.returncode == 0, told
    found = json.loads(told.stdout)
    assert (found["passed"], found["kills"], found["out_of_order"], found["refused"]) == (True, 1, 0, 0)
    assert found["acknowledged"] == found["joins"] > 100
    assert 0 < found["recovery_longest_seconds"] < 30 and 0.5 < found["availability_of_an_hour_with_one_kill"] <= 1
    assert mode == "async" or found["lost"] == 0
