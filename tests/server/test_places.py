"""What a place looks like on the wire: how much of the way is behind somebody, and when to ask again."""

from hypothesis import given
from hypothesis import strategies as st

from engine.views import Place
from server.places import FASTEST_POLL_S, SLOWEST_POLL_S, poll_after_s, progress_of


def waiting(number: int | None, status: str = "waiting") -> Place:
    who = ("e1", "u1", status, None, 1, number)
    return Place(*who, None, 9, None, None, None, 0, 0, 0, None, 60, None, 1, False, True)


def test_progress_is_the_share_of_the_way_that_is_behind() -> None:
    assert [progress_of(waiting(4), position) for position in (4, 3, 2, 1)] == [0.25, 0.5, 0.75, 1.0]
    assert progress_of(waiting(3), 3) == 0.3333
    assert progress_of(waiting(3), 2) == 0.6667
    assert progress_of(waiting(2), 5) == 0.2, "who is further back than their number has that way before them"
    assert progress_of(waiting(None, "lobby"), None) == 0.0
    assert progress_of(waiting(7, "ready"), None) == 1.0


@given(st.integers(1, 2**32), st.integers(1, 2**32))
def test_progress_is_what_rounding_to_four_digits_gives(number: int, position: int) -> None:
    told = progress_of(waiting(number), position)
    assert 0 <= told <= 1
    assert abs(told - (1 - (position - 1) / max(number, position))) <= 0.000_050_1
    assert told == round(told, 4)


@given(st.integers(0, 10**6), st.integers(1, 86_400))
def test_who_waits_long_asks_seldom_and_always_in_time_to_count_as_present(wait_s: int, presence_s: int) -> None:
    told = poll_after_s(wait_s, presence_s)
    assert told == max(FASTEST_POLL_S, min(SLOWEST_POLL_S, presence_s // 3, wait_s // 20))
