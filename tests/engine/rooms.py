"""Rooms in a given state, the records that made them, and a second venue built from those records."""

from collections.abc import Mapping

from engine.actor import By
from engine.records import Record
from engine.room import Room
from engine.venue import Venue

OPERATOR = By("ops")
WHY = By("ops", "the shop asked for it")
PATH_TO_STATE = {"draft": (), "open": ("open",), "paused": ("open", "pause"), "closed": ("open", "close")}


class RecordingVenue(Venue):
    """A venue that keeps every record it drained."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Record] = []

    def drain(self):  # type: ignore[no-untyped-def]
        ready = super().drain()
        self.log += ready.records
        return ready


def make_room(venue: Venue, settings: Mapping[str, object] | None = None) -> Room:
    """Create event e1 as a draft at time 0."""
    venue.configure("e1", settings or {}, OPERATOR, 0, replace=True)
    return venue.room("e1")


def room_in(state: str, settings: Mapping[str, object] | None = None) -> tuple[Room, RecordingVenue]:
    """Return event e1 in a state, reached at time 0."""
    venue = RecordingVenue()
    room = make_room(venue, settings)
    for action in PATH_TO_STATE[state]:
        room.control(action, WHY, 0)
    return room, venue


def records_of(venue: RecordingVenue) -> list[Record]:
    """Return every record so far."""
    venue.drain()
    return venue.log


def rebuilt(venue: RecordingVenue) -> Venue:
    """Return another venue made by replay, having checked that it is the same."""
    other = Venue()
    for record in records_of(venue):
        other.apply(record)
    other.drain()
    other.check()
    assert facts(other) == facts(venue)
    return other


def facts(venue: Venue) -> object:
    """Return all that two venues in the same state have in common, as plain values."""
    rooms = {
        event_id: (list(room.capture()), [room.place(arrival) for arrival in range(1, len(room.register) + 1)])
        for event_id, room in sorted(venue.rooms.items())
    }
    return venue.epoch, venue.outbox.lsn, venue.digest(), rooms
