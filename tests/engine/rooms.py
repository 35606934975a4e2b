"""Rooms in a given state, the records that made them, and a second venue built from those records."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from engine import answering
from engine.actor import By, Entrant, Holder, Whom
from engine.errors import Refused
from engine.identities import subject_of
from engine.records import Record, kind_of
from engine.room import Room
from engine.venue import Venue
from engine.views import Notice, Place, Session

OPERATOR = By("ops")
WHY = By("ops", "the shop asked for it")
PACER = By("pacer")
SECRET = hashlib.sha256(b"the secret of the draw").digest()
PATH_TO_STATE = {
    "draft": (),
    "lobby": ("lobby",),
    "open": ("open",),
    "paused": ("open", "pause"),
    "closed": ("open", "close"),
}


class RecordingVenue(Venue):
    """A venue that keeps every record and every notice it drained."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Record] = []
        self.told: list[Notice] = []

    def drain(self):  # type: ignore[no-untyped-def]
        ready = super().drain()
        self.log += ready.records
        self.told += ready.notices
        return ready


def make_room(venue: Venue, settings: Mapping[str, object] | None = None, event_id: str = "e1") -> Room:
    """Create an event as a draft at time 0."""
    venue.configure(event_id, settings or {}, OPERATOR, 0, replace=True)
    return venue.room(event_id)


def room_in(state: str, settings: Mapping[str, object] | None = None) -> tuple[Room, RecordingVenue]:
    """Return event e1 in a state, reached at time 0."""
    venue = RecordingVenue()
    wanted = {"lobby": True} | dict(settings or {}) if state == "lobby" else settings
    room = make_room(venue, wanted)
    for action in PATH_TO_STATE[state]:
        control(room, action, WHY, 0)
    return room, venue


def control(room: Room, action: str, by: By, now_ms: int, **others: object) -> bool:
    """Do what an operator does to an event; a draw is made of SECRET."""
    what: dict[str, object] = {"draw_id": "1-1", "secret": SECRET} | others
    return room.control(action, by, now_ms, **what)  # type: ignore[arg-type]


def join(room: Room, user_id: str, now_ms: int, proof: int = 0, **others: object) -> Place:
    """Join as a visitor."""
    return room.join(Entrant(user_id, proof, **others), now_ms)  # type: ignore[arg-type]


def join_many(room: Room, count: int, now_ms: int) -> list[Place]:
    """Let u1, u2, … join at one moment."""
    return [join(room, f"u{index}", now_ms) for index in range(1, count + 1)]


def holder(place: Place) -> Holder:
    """Return whoever shows the newest token of a place."""
    return Holder(place.arrival, place.user_id, place.generation)


def seen(room: Room, arrival: int, now_ms: int) -> Place:
    """Return a place as it is answered at a moment."""
    return answering.place(room.ledger, arrival, now_ms)


def status_of(room: Room, arrival: int) -> str:
    """Return a place's status and, where it has one, the cause of its end."""
    place = seen(room, arrival, 0)
    return f"{place.status} {place.cause}" if place.cause else place.status


def redeem(room: Room, number: int, now_ms: int, request: str | None = "k1", release: int = 1) -> Session:
    """Show the pass of a number, as its holder's site does."""
    arrival = room.ledger.register.arrival_of(number)
    subject = subject_of(room.event_id, room.ledger.register.user_ids[arrival])
    return room.redeem(number, release, subject, f"jti-{number}-{release}", request, "site", 1_790_000_000_000, now_ms)


def run_out(room: Room, now_ms: int) -> None:
    """End everything that has run out."""
    for _ in range(100):
        if not room.expire(now_ms):
            return
    raise AssertionError("there is always more to expire")


def whom(place: Place) -> Whom:
    """Return how the site names a visitor."""
    return Whom(user_id=place.user_id)


@contextmanager
def refusal(code: str, reason: str | None = None) -> Iterator[None]:
    """Expect a refusal with this code and reason."""
    with pytest.raises(Refused) as caught:
        yield
    assert (caught.value.code, caught.value.reason) == (code, reason)


def records_of(venue: RecordingVenue) -> list[Record]:
    """Return every record so far."""
    venue.drain()
    return venue.log


def kinds_of(venue: RecordingVenue) -> list[str]:
    """Return the kinds of the records since the last drain."""
    return [kind_of(record) for record in venue.drain().records]


def rebuilt(venue: RecordingVenue) -> Venue:
    """Return another venue made by replay, having checked that it is the same."""
    other = Venue()
    for record in records_of(venue):
        other.apply(record)
    other.drain()
    other.check()
    assert facts(other) == facts(venue)
    return other


def reloaded(venue: Venue) -> Venue:
    """Return another venue made by capture and load, having checked that it is the same."""
    other = Venue()
    other.load(list(venue.capture()))
    other.check()
    assert facts(other) == facts(venue)
    return other


def facts(venue: Venue) -> object:
    """Return all that two venues in the same state have in common, as plain values."""
    now_ms = venue.outbox.last_ms
    rooms = {
        event_id: (
            list(room.ledger.capture()),
            answering.visitors(room.ledger, None, 0, len(room.ledger.register) + 1, now_ms),
            answering.view(room.ledger),
            answering.fairness(room.ledger),
            answering.stats(room.ledger, now_ms)._replace(next_release_in_ms=None),
        )
        for event_id, room in sorted(venue.rooms.items())
    }
    return venue.epoch, venue.outbox.lsn, venue.digest(), rooms
