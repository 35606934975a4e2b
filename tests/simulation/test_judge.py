"""The judge of a simulated life lets an honest one pass and finds every kind of broken promise."""

from collections.abc import Callable

import pytest

from engine.actor import By, Entrant, Whom
from engine.venue import Venue
from snapshots.wal import RESTARTS_PER_TERM as TERM
from tests.simulation.history import Answered, History, Promotion
from tests.simulation.judge import judge
from tests.simulation.visitors import EVENT, SETTINGS


def a_venue(*visitors: str) -> Venue:
    venue = Venue()
    venue.start(TERM, 0, 0)
    venue.configure(EVENT, SETTINGS, By("admin"), 0, replace=True)
    venue.room(EVENT).control("open", By("admin"), 0)
    for visitor in visitors:
        venue.room(EVENT).join(Entrant(visitor, 7), 1)
    return venue


def said(
    visitor: str, verb: str, at_s: float, number: int, lsn: int, by: str = "a#1", term: int = 1, **more: object
) -> Answered:
    role = "primary" if by.startswith("a") else "follower"
    said = Answered(visitor, verb, by, role, at_s - 0.2, at_s - 0.1, at_s, "ok", term * TERM, lsn, number, number)
    return said._replace(**more)  # type: ignore[arg-type]


def an_honest_life() -> tuple[History, Venue]:
    venue = a_venue("u", "v", "w")
    answers = [
        said("u", "join", 1, 1, 4, position=1),
        said("v", "join", 2, 2, 5, position=2),
        said("v", "touch", 2.5, 2, 5, by="b#1", position=2),
        said("w", "join", 3, 3, 6, position=3),
        said("u", "place", 4, 1, 6, position=1),
        said("v", "place", 5, 2, 6, position=2),
        said("w", "touch", 6, 3, 6, by="b#1", position=3),
    ]
    return History(answers), venue


def lossy(history: History, from_lsn: int) -> None:
    history.promotions.append(Promotion(3.5, "b", 2, from_lsn, True))


def test_an_honest_life_passes() -> None:
    assert list(judge(*an_honest_life(), is_async=False)) == []


def change(at: int, **changes: object) -> Callable[[History], None]:
    def apply(history: History) -> None:
        history.answers[at] = history.answers[at]._replace(**changes)  # type: ignore[arg-type]

    return apply


def add(*answers: Answered) -> Callable[[History], None]:
    return lambda history: history.answers.extend(answers)


BROKEN: dict[str, tuple[Callable[[History], None], str]] = {
    "another number later": (change(5, number=4), "was told the numbers"),
    "a number given twice": (change(1, number=1), "was given to"),
    "a later one stands ahead": (change(0, answered_s=0.5, sent_s=4.5), "had asked"),
    "a join that is gone": (add(said("x", "join", 7, 4, 6)), "no place"),
    "a needless readmission": (add(said("w", "readmit", 7, 3, 6)), "had to be readmitted"),
    "two writers in a term": (change(3, by="c#1"), "answered writes"),
    "an old term goes on": (add(said("x", "join", 3.5, 3, 7, by="ax#1", term=2)), "in term 1"),
    "a read of the past": (change(6, lsn=5), "known was"),
    "a read of the past at the primary": (change(4, lsn=4), "known was"),
    "a position that rises": (change(5, position=3), "was shown position"),
    "a redeem that is forgotten": (add(said("u", "redeem", 7, 0, 0)), "was redeemed"),
    "a leave that is forgotten": (add(said("u", "leave", 7, 0, 0)), "left, was told so"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_found(name: str) -> None:
    history, venue = an_honest_life()
    breaking, words = BROKEN[name]
    breaking(history)
    found = list(judge(history, venue, is_async=False))
    assert any(words in violation for violation in found), found


def test_stale_reads_may_be_old_and_worse() -> None:
    history, venue = an_honest_life()
    change(6, lsn=1, position=9, is_stale=True)(history)
    assert list(judge(history, venue, is_async=False)) == []


def test_who_is_let_in_out_of_turn_is_found() -> None:
    history, venue = an_honest_life()
    venue.room(EVENT).admit(Whom(user_id="w"), By("admin", "a guest of honour"), 2)
    assert any("still waits" in its for its in judge(history, venue, is_async=False))


def test_a_promotion_by_hand_may_lose_what_rested_on_one_disk_if_it_comes_back_with_its_number() -> None:
    def a_loss(*, is_alone: bool, from_lsn: int) -> list[str]:
        history, venue = an_honest_life()
        lossy(history, from_lsn)
        change(3, is_alone=is_alone)(history)
        add(said("w", "readmit", 7, 3, 6, by="b#1", term=2))(history)
        return list(judge(history, venue, is_async=False))

    assert a_loss(is_alone=True, from_lsn=5) == []
    assert any("readmitted" in its for its in a_loss(is_alone=False, from_lsn=5))
    assert any("readmitted" in its for its in a_loss(is_alone=True, from_lsn=6))


def test_an_answer_that_a_promotion_undoes_is_found() -> None:
    history, venue = an_honest_life()
    history.promotions.append(Promotion(6.5, "b", 2, 5, False))
    assert any("began behind LSN 5" in its for its in judge(history, venue, is_async=False))


def test_in_async_any_tail_may_be_lost_if_it_comes_back() -> None:
    history, venue = an_honest_life()
    lossy(history, 5)
    add(said("w", "readmit", 7, 3, 6, by="b#1", term=2))(history)
    assert list(judge(history, venue, is_async=True)) == []
