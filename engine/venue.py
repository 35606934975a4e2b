"""The venue: the rooms of all events that share one log, one LSN and one clock.

Whoever applies the same records in the same order holds the same venue: the daemon after a restart, a
follower, a replay. A Checkpoint record, written every CHECKPOINT_EVERY records, carries the digest of all rooms;
applying it compares, so that a flipped bit or a nondeterminism shows soon after it happened.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine import applying
from engine.actor import By
from engine.errors import Damaged, Refused
from engine.estimate import Estimator, MeanRateEstimator
from engine.outbox import Outbox, Ready
from engine.records import Checkpoint, Configured, Deleted, Joined, Left, Record, Started, Transferred
from engine.register import DIGEST_MASK
from engine.room import Room
from engine.views import EventGone

CHECKPOINT_EVERY = 5_000
EVENTS_LIMIT = 10_000
RENUMBER_GAP = 100_000


class Venue:
    """All rooms of one log; `outbox.last_ms` is the newest event time on record, from which the clock goes on."""

    def __init__(self, estimator: Callable[[], Estimator] = MeanRateEstimator) -> None:
        self.rooms: dict[str, Room] = {}
        self.outbox = Outbox()
        self.epoch = 0
        self._estimator = estimator
        self._checkpoint_lsn = 0

    def room(self, event_id: str) -> Room:
        """Return an event's room; raises Refused("not_found")."""
        room = self.rooms.get(event_id)
        if room is None:
            raise Refused("not_found", "there is no such event")
        return room

    def configure(
        self, event_id: str, changes: Mapping[str, object], by: By, now_ms: int, *, replace: bool
    ) -> tuple[bool, bool]:
        """Create or change an event; returns (created, changed). With `replace` unset a missing event is a 404."""
        room = self.rooms.get(event_id)
        if room is not None:
            return False, room.configure(changes, by, now_ms, replace=replace)
        if not replace:
            self.room(event_id)
        if len(self.rooms) >= EVENTS_LIMIT:
            raise Refused("conflict", f"there are {EVENTS_LIMIT} events; delete one first", reason="too_many_events")
        room = self._new_room(event_id)
        room.configure(changes, by, now_ms, replace=True)
        self.rooms[event_id] = room
        return True, True

    def delete(self, event_id: str, by: By, now_ms: int) -> None:
        """Delete an event and everybody's place in it, where its state allows that."""
        self.room(event_id).control("delete", by, now_ms)
        self._delete(event_id, self.outbox.lsn)

    def start(self, epoch: int, now_ms: int, wall_ms: int, lost: str | None = None) -> None:
        """Begin an epoch: everybody counts as just heard and no batch leaves before a full interval.

        `lost` says what history may be missing; then numbers go on behind a gap.
        """
        record = Started(now_ms, epoch, wall_ms, RENUMBER_GAP if lost else 0, lost)
        self._started(record)
        self.outbox.write(record)

    def drain(self) -> Ready:
        """Hand over records and notices together; writes a checkpoint when one is due."""
        if self.outbox.lsn - self._checkpoint_lsn >= CHECKPOINT_EVERY and not self._is_drawing():
            record = Checkpoint(self.outbox.last_ms, self.digest())
            self.outbox.write(record)
            self._checkpoint_lsn = self.outbox.lsn
        return self.outbox.drain()

    def _is_drawing(self) -> bool:
        """Return whether a draw is half written: replay writes it at once, so the digest has to wait for its end."""
        return any(room.ledger.undrawn() for room in self.rooms.values())

    def digest(self) -> int:
        """Return the digest of all rooms: a sum mod 2⁶⁴; O(events)."""
        return sum(room.ledger.register.digest() for room in self.rooms.values()) & DIGEST_MASK

    def apply(self, record: Record, *, draws: bool = True) -> None:
        """Take in one record from the log, the same code that ran when it was decided.

        Unless it `draws`, the rows of a draw are left to be written in steps, by whoever asked for that.
        """
        act = _OF_THE_VENUE.get(type(record))
        if act is None:
            ledger = self._room_of(record).ledger
            if ledger.drawing is not None and type(record) not in _LET_A_DRAW_GO_ON:
                ledger.draw_all()
            applying.apply(ledger, record)
            self.outbox.count(record)
            if ledger.drawing is not None and draws:
                ledger.draw_all()
        else:
            act(self, record)
            self.outbox.count(record)

    def _started(self, record: Started) -> None:
        self.epoch = record.epoch
        for room in self.rooms.values():
            applying.started(room.ledger, record)

    def _checked(self, record: Checkpoint) -> None:
        for room in self.rooms.values():
            room.ledger.draw_all()
        self._checkpoint_lsn = self.outbox.lsn + 1
        if record.digest != self.digest():
            raise Damaged(f"LSN {self._checkpoint_lsn}: the state differs from the digest in the log")

    def _deleted(self, record: Deleted) -> None:
        applying.apply(self._room_of(record).ledger, record)
        self._delete(record.event_id, self.outbox.lsn + 1)

    def _room_of(self, record: Any) -> Room:
        room = self.rooms.get(record.event_id)
        if room is None:
            if not isinstance(record, Configured):
                raise Damaged(f"LSN {self.outbox.lsn + 1}: a record of event {record.event_id!r}, which does not exist")
            room = self.rooms[record.event_id] = self._new_room(record.event_id)
        return room

    def _new_room(self, event_id: str) -> Room:
        return Room(event_id, self.outbox, self._estimator())

    def _delete(self, event_id: str, version: int) -> None:
        del self.rooms[event_id]
        self.outbox.announce(EventGone(event_id, version))

    def capture(self) -> Iterator[object]:
        """Return everything as of now, in parts of bounded size, to be packed later and in another thread.

        The call costs one byte a visitor; changes made after it do not show in the parts.
        """
        facts = {"epoch": self.epoch, "last_ms": self.outbox.last_ms, "checkpoint_lsn": self._checkpoint_lsn}
        facts["lsn"] = self.outbox.lsn
        return _parts(facts, [room.ledger.capture() for room in self.rooms.values()])

    def load(self, parts: Iterable[Any]) -> None:
        """Take up captured parts into an empty venue; raises Damaged when they do not add up."""
        run = iter(parts)
        what, facts = next(run)
        assert what == "venue" and not self.rooms, "a capture begins with the venue and goes into an empty one"
        self.epoch, self._checkpoint_lsn = facts["epoch"], facts["checkpoint_lsn"]
        self.outbox.lsn, self.outbox.last_ms = facts["lsn"], facts["last_ms"]
        for facts, body in _by_room(run):
            room = self._new_room(facts["event_id"])
            room.ledger.load(facts, body, self.outbox.last_ms)
            self.rooms[room.event_id] = room

    def check(self) -> None:
        """Assert the invariants of every room; O(n), for tests and `stanchion verify`."""
        for event_id, room in self.rooms.items():
            assert room.event_id == event_id
            room.ledger.check()


# What may be decided while a draw is half written: it comes out the same before and after a step (`engine.ledger`).
_LET_A_DRAW_GO_ON = frozenset((Joined, Left, Transferred))

_OF_THE_VENUE: Mapping[type[Record], Callable[[Venue, Any], None]] = {
    Started: Venue._started,
    Checkpoint: Venue._checked,
    Deleted: Venue._deleted,
}


def _parts(facts: Mapping[str, object], rooms: Sequence[Iterator[object]]) -> Iterator[object]:
    yield ["venue", facts]
    for parts in rooms:
        yield from parts


def _by_room(parts: Iterator[Any]) -> Iterator[tuple[Mapping[str, Any], Iterator[Any]]]:
    """Group a run of parts by the "room" part that begins each room; each body is to be read before the next."""
    ahead = next(parts, None)

    def body() -> Iterator[Any]:
        nonlocal ahead
        while (ahead := next(parts, None)) is not None and ahead[0] != "room":
            yield ahead

    while ahead is not None:
        yield ahead[1], body()
