"""The venue: several events side by side, checkpoints, capture and load."""

import pytest

from engine.actor import Entrant, Holder
from engine.errors import Damaged, Refused
from engine.records import Checkpoint, Joined, Left
from engine.register import ROWS_PER_PART
from engine.venue import CHECKPOINT_EVERY, RENUMBER_GAP, Venue
from tests.engine.rooms import OPERATOR, WHY, RecordingVenue, facts, rebuilt, records_of

T = 1_000


def venue_with(events: int = 2, visitors: int = 0) -> RecordingVenue:
    venue = RecordingVenue()
    for index in range(events):
        venue.configure(f"e{index}", {}, OPERATOR, T, replace=True)
        venue.room(f"e{index}").control("open", OPERATOR, T)
    for index in range(visitors):
        venue.room(f"e{index % events}").join(Entrant(f"u{index}", index), T + index)
    return venue


def test_events_stand_side_by_side_with_lines_of_their_own() -> None:
    venue = venue_with(2, 10)
    assert venue.room("e0").join(Entrant("new"), T).position == 6
    assert venue.room("e1").join(Entrant("new"), T).position == 6
    rebuilt(venue)


def test_an_event_that_is_not_there_is_a_404_and_only_a_full_put_makes_one() -> None:
    venue = Venue()
    with pytest.raises(Refused) as caught:
        venue.configure("e1", {"batch_size": 5}, OPERATOR, T, replace=False)
    assert caught.value.status == 404
    assert venue.configure("e1", {"batch_size": 5}, OPERATOR, T, replace=True) == (True, True)
    assert venue.configure("e1", {"batch_size": 5}, OPERATOR, T, replace=True) == (False, False)


def test_bad_settings_make_no_event() -> None:
    venue = Venue()
    with pytest.raises(Refused):
        venue.configure("e1", {"batch_size": 0}, OPERATOR, T, replace=True)
    assert venue.rooms == {} and venue.drain().records == []


@pytest.mark.slow
def test_a_checkpoint_comes_every_so_many_records_and_replay_compares_it() -> None:
    venue = venue_with(1)
    for index in range(CHECKPOINT_EVERY + 10):
        venue.room("e0").join(Entrant(f"u{index}"), T)
        venue.drain()
    checkpoints = [record for record in records_of(venue) if isinstance(record, Checkpoint)]
    assert len(checkpoints) == 1
    rebuilt(venue)


def test_a_changed_record_shows_at_the_next_checkpoint() -> None:
    venue = venue_with(1)
    for index in range(CHECKPOINT_EVERY + 10):
        venue.room("e0").join(Entrant(f"u{index}"), T)
        venue.drain()
    log = records_of(venue)
    at = next(at for at, record in enumerate(log) if isinstance(record, Joined))
    log[at] = log[at]._replace(key=log[at].key + (1 << 40))  # type: ignore[union-attr]
    other = Venue()
    with pytest.raises(Damaged, match="differs from the digest"):
        for record in log:
            other.apply(record)


@pytest.mark.slow
def test_a_capture_shows_nothing_that_came_after_it() -> None:
    venue = venue_with(2, 3 * ROWS_PER_PART)
    venue.room("e0").release(500, OPERATOR, T, manual=True)
    before, parts = facts(venue), venue.capture()
    venue.room("e0").release(700, OPERATOR, T, manual=True)
    venue.room("e1").join(Entrant("late"), T)
    venue.room("e1").control("close", WHY, T)
    loaded = Venue()
    loaded.load(parts)
    loaded.check()
    assert facts(loaded) == before


def test_a_capture_whose_rows_were_changed_is_found_out() -> None:
    parts = list(venue_with(1, 100).capture())
    rows = next(part for part in parts if part[0] == "rows")  # type: ignore[index]
    status = rows[1][2]  # type: ignore[index]
    rows[1][2] = bytes([status[0] + 1]) + status[1:]  # type: ignore[index]
    with pytest.raises(Damaged, match="do not add up"):
        Venue().load(parts)


def test_a_record_of_an_unknown_event_is_damage() -> None:
    with pytest.raises(Damaged, match="'nowhere'"):
        Venue().apply(Left("nowhere", T, 1))


def test_a_start_is_a_record_and_sets_the_epoch() -> None:
    venue = venue_with(1, 3)
    venue.start(99, T + 5, 1_700_000_000_000)
    assert venue.epoch == 99
    assert rebuilt(venue).epoch == 99


@pytest.mark.slow
def test_where_history_may_be_lost_numbers_go_on_behind_a_gap() -> None:
    venue = venue_with(2, 10)
    venue.start(1 << 21, T, 0, "a backup was restored")
    place = venue.room("e0").join(Entrant("new"), T)
    assert (place.number, place.position) == (5 + RENUMBER_GAP + 1, 6)
    with pytest.raises(Refused):
        venue.room("e0").held_place(Holder(6, ""), T)
    loaded = Venue()
    loaded.load(rebuilt(venue).capture())
    loaded.check()
    assert facts(loaded) == facts(venue)
    venue.start((1 << 21) + 1, T, 0)
    assert venue.room("e0").join(Entrant("next"), T).number == place.number + 1


def test_a_deleted_event_may_come_again_with_an_empty_line() -> None:
    venue = venue_with(1, 5)
    venue.room("e0").control("close", WHY, T)
    venue.delete("e0", OPERATOR, T)
    venue.configure("e0", {}, OPERATOR, T, replace=True)
    venue.room("e0").control("open", OPERATOR, T)
    assert venue.room("e0").join(Entrant("u1"), T).number == 1
    rebuilt(venue)
