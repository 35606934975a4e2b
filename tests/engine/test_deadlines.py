"""Deadlines: what runs out when."""

from hypothesis import given
from hypothesis import strategies as st

from engine.deadlines import Deadlines


def test_nothing_is_due_before_its_time_and_everything_from_then_on() -> None:
    deadlines = Deadlines()
    deadlines.set(7, 1_000)
    assert (deadlines.due(999), deadlines.due(1_000), deadlines.due(5_000)) == (None, 7, 7)


def test_what_comes_first_is_due_first_and_stays_due_until_it_is_cleared() -> None:
    deadlines = Deadlines()
    for arrival, at_ms in ((1, 300), (2, 100), (3, 200)):
        deadlines.set(arrival, at_ms)
    order = []
    while (arrival := deadlines.due(1_000)) is not None:
        assert deadlines.due(1_000) == arrival
        order.append(arrival)
        deadlines.clear(arrival)
    assert order == [2, 3, 1]


def test_setting_a_deadline_anew_puts_off_the_old_one() -> None:
    deadlines = Deadlines()
    deadlines.set(1, 100)
    deadlines.set(1, 200)
    assert (deadlines.due(150), deadlines.due(200)) == (None, 1)
    deadlines.set(1, 50)
    assert deadlines.due(50) == 1


def test_clearing_what_is_not_there_is_harmless() -> None:
    deadlines = Deadlines()
    deadlines.clear(3)
    deadlines.set(3, 10)
    deadlines.clear(3)
    assert deadlines.due(99) is None and deadlines.at_ms == {}


def test_restarting_gives_everybody_the_same_new_deadline() -> None:
    deadlines = Deadlines()
    for arrival in (5, 6):
        deadlines.set(arrival, arrival)
    deadlines.restart(500)
    assert (deadlines.at_ms, deadlines.due(499)) == ({5: 500, 6: 500}, None)
    assert deadlines.due(500) == 5


def test_forgetting_leaves_nothing() -> None:
    deadlines = Deadlines()
    deadlines.set(1, 1)
    deadlines.forget()
    assert deadlines.due(9) is None and deadlines.at_ms == {}


steps = st.lists(st.tuples(st.sampled_from(["set", "clear", "due"]), st.integers(1, 6), st.integers(0, 30)))


@given(steps)
def test_they_agree_with_a_plain_dict(steps: list[tuple[str, int, int]]) -> None:
    deadlines, plain = Deadlines(), dict[int, int]()
    for what, arrival, at_ms in steps:
        if what == "set":
            deadlines.set(arrival, at_ms)
            plain[arrival] = at_ms
        elif what == "clear":
            deadlines.clear(arrival)
            plain.pop(arrival, None)
        else:
            due = min(((its, who) for who, its in plain.items() if its <= at_ms), default=(0, None))[1]
            assert deadlines.due(at_ms) == due
    loaded = Deadlines()
    loaded.load(list(deadlines.at_ms.items()))
    assert loaded.at_ms == plain and loaded.due(99) == deadlines.due(99)
