"""The lag of a follower, computed from what both servers said and when."""

import pytest

from bench.cases.failover import Curve, behind


def curve(*points: tuple[float, int]) -> Curve:
    made = Curve()
    for at_s, lsn in points:
        made.add(at_s, lsn)
    return made


def test_a_follower_is_behind_in_records_and_in_the_time_since_the_primary_stood_there() -> None:
    lag = behind(curve((10.0, 0), (11.0, 1000), (12.0, 1000)), curve((9.0, 0), (10.5, 400), (11.0, 1000), (13.0, 1000)))
    assert lag.at_s == [0.5, 1.0]
    assert lag.records == pytest.approx([100, 0])
    assert lag.ms == pytest.approx([100, 0])


def test_a_primary_that_stands_still_has_nobody_behind_it() -> None:
    lag = behind(curve((1.0, 5), (2.0, 5), (3.0, 5)), curve((1.5, 5), (2.5, 5)))
    assert lag.records == [0, 0] and lag.ms == [0, 0]


def test_an_lsn_that_was_seen_is_not_unseen_by_an_answer_that_was_overtaken() -> None:
    assert curve((1.0, 5), (2.0, 4), (3.0, 6)).lsn == [5, 5, 6]
