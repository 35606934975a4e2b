"""Presence: who counts as there, rule by rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.presence import Presence
from engine.settings import settings_from
from tests.engine import situations
from tests.engine.rooms import OPERATOR, control, holder, join, join_many, rebuilt, room_in, seen, status_of

SETTINGS = settings_from({"presence_timeout_s": 20, "presence_timeout_hidden_s": 100})
T = 1_000_000


def crowd(count: int, now_ms: int = T) -> Presence:
    presence = Presence()
    for _ in range(count):
        presence.add(now_ms, SETTINGS)
    return presence


def keep_talking(presence: Presence, arrival: int, from_ms: int, until_ms: int, every_ms: int = 5_000) -> None:
    """Hear of one arrival again and again."""
    for now_ms in range(from_ms + every_ms, until_ms + 1, every_ms):
        presence.hear(arrival, now_ms, SETTINGS)


def test_who_is_quiet_while_others_talk_is_absent_after_the_timeout_and_not_before() -> None:
    presence = crowd(2)
    keep_talking(presence, 2, T, T + 20_000)
    assert presence.is_present(1, SETTINGS) and presence.is_present(2, SETTINGS)
    presence.hear(2, T + 20_001, SETTINGS)
    assert not presence.is_present(1, SETTINGS) and presence.is_present(2, SETTINGS)


def test_one_word_makes_the_absent_present_again() -> None:
    presence = crowd(2)
    keep_talking(presence, 2, T, T + 500_000)
    assert not presence.is_present(1, SETTINGS)
    presence.hear(1, T + 500_001, SETTINGS)
    assert presence.is_present(1, SETTINGS)


def test_nobody_is_absent_while_nobody_at_all_is_heard() -> None:
    presence = crowd(3)
    assert all(presence.is_present(arrival, SETTINGS) for arrival in (1, 2, 3))
    presence.hear(3, T + 3_600_000, SETTINGS)
    assert presence.is_present(1, SETTINGS), "a silence of everybody was counted against somebody"


def test_a_silence_of_everybody_counts_for_half_a_timeout_at_most() -> None:
    presence = crowd(2)
    for number in (1, 2):
        presence.hear(2, T + number * 3_600_000, SETTINGS)
        assert presence.is_present(1, SETTINGS)
    presence.hear(2, T + 3 * 3_600_000, SETTINGS)
    assert not presence.is_present(1, SETTINGS)


def test_a_hidden_tab_is_given_more_patience_until_it_is_seen_again() -> None:
    presence = crowd(3)
    presence.hear(1, T, SETTINGS, visible=False)
    keep_talking(presence, 3, T, T + 100_000)
    assert presence.is_present(1, SETTINGS) and not presence.is_present(2, SETTINGS)
    keep_talking(presence, 3, T + 100_000, T + 105_000)
    assert not presence.is_present(1, SETTINGS)
    presence.hear(1, T + 106_000, SETTINGS)
    keep_talking(presence, 3, T + 106_000, T + 131_000)
    assert not presence.is_present(1, SETTINGS), "a tab that is seen again has the patience of a seen one"


def test_hearing_of_everybody_gives_all_full_patience_and_makes_their_tabs_visible() -> None:
    presence = crowd(3)
    presence.hear(1, T, SETTINGS, visible=False)
    keep_talking(presence, 3, T, T + 500_000)
    presence.hear_everybody(3, T + 9_000_000)
    keep_talking(presence, 3, T + 9_000_000, T + 9_020_000)
    assert presence.is_present(1, SETTINGS) and presence.is_present(2, SETTINGS)
    keep_talking(presence, 3, T + 9_020_000, T + 9_025_000)
    assert not presence.is_present(1, SETTINGS) and not presence.is_present(2, SETTINGS)


def test_time_that_goes_back_changes_nothing() -> None:
    presence = crowd(2)
    presence.hear(2, T - 500_000, SETTINGS)
    assert presence.is_present(1, SETTINGS) and presence.last_seen_ms(1, T) == T


def test_the_record_says_when_somebody_was_heard_last() -> None:
    presence = crowd(2)
    keep_talking(presence, 2, T, T + 30_000)
    assert (presence.last_seen_ms(1, T + 30_000), presence.last_seen_ms(2, T + 30_000)) == (T, T + 30_000)
    assert crowd(1, 5).last_seen_ms(1, 0) == 0


def test_the_checker_finds_a_row_too_many() -> None:
    presence = crowd(2)
    presence.check(2)
    with pytest.raises(AssertionError):
        presence.check(3)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40_000), st.booleans()), max_size=40))
def test_whoever_was_heard_within_the_timeout_is_present(words: list[tuple[int, int, bool]]) -> None:
    presence, now_ms, heard_ms = crowd(4), T, dict.fromkeys(range(1, 5), T)
    for arrival, after_ms, visible in words:
        now_ms += after_ms
        presence.hear(arrival, now_ms, SETTINGS, visible=visible)
        heard_ms[arrival] = now_ms
        for other, at_ms in heard_ms.items():
            assert presence.is_present(other, SETTINGS) or now_ms - at_ms > SETTINGS.presence_timeout_s * 1000


# ---- in a room ---------------------------------------------------------------------------------------------


def test_whoever_is_absent_keeps_the_place_until_a_release_reaches_them() -> None:
    situation = situations.waiting()
    situation.wait(500)
    assert (situation.place.status, situation.place.position) == ("waiting", 1)
    situation.release()
    assert situation.place.status == "parked"


def test_after_a_silence_of_everybody_the_line_is_released_in_order() -> None:
    room, _ = room_in("open", situations.SETTINGS)
    join_many(room, 5, T)
    room.release(3, OPERATOR, T + 3_600_000, manual=True)
    assert [status_of(room, arrival) for arrival in range(1, 6)] == ["ready"] * 3 + ["waiting"] * 2


def test_after_a_start_everybody_counts_as_just_heard_and_grace_begins_anew() -> None:
    situation = situations.parked()
    join(situation.room, "u3", situation.now_ms)
    situation.wait(100)
    situation.venue.start(7, situation.now_ms, 0)
    assert situation.place.window_ms == 300_000
    situation.release(2)
    assert status_of(situation.room, 3) == "ready"
    replayed = rebuilt(situation.venue).room("e1")
    assert seen(replayed, 1, situation.now_ms).window_ms == 300_000


def test_whoever_waited_in_a_lobby_counts_as_just_heard_at_the_opening() -> None:
    room, _ = room_in("lobby", situations.SETTINGS)
    first, second = join_many(room, 2, T)
    for now_ms in range(T, T + 100_000, 5_000):
        room.touch(holder(second), now_ms)
    control(room, "open", OPERATOR, T + 100_000)
    assert room.release(2, OPERATOR, T + 100_000, manual=True).released == 2
    assert status_of(room, first.arrival) == "ready"


def test_a_hidden_tab_of_somebody_parked_stays_parked() -> None:
    situation = situations.parked()
    situation.room.touch(situation.holder, situation.now_ms, visible=False)
    assert situation.place.status == "parked"
    situation.hear()
    assert (situation.place.status, situation.place.position) == ("waiting", 1)
