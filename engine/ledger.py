"""The ledger: all state of one room, and the only code that changes it, `apply`.

The same code runs for a record just decided and for one read back from the log, so replay equals live by
construction. The ledger decides nothing; what cannot follow from the state it refuses as damage. Deadlines are in
event time, which stands still while the event is paused.

A draw is the one fact too large for one moment: its record fixes the outcome, and the rows are written in steps
(`draw_step`). Whatever may be decided meanwhile (joining, leaving, a transfer) comes out the same before and after a
step, and everything else, replay included, finishes the draw first (`draw_all`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, NamedTuple

from engine.deadlines import Deadlines
from engine.draw import Drawing, mixed
from engine.errors import Damaged
from engine.estimate import Estimator
from engine.line import Line, number_of, order_key
from engine.outbox import Outbox
from engine.presence import Presence
from engine.records import (
    Admitted,
    Banned,
    Closed,
    Completed,
    Configured,
    Deleted,
    Expired,
    Extended,
    Joined,
    Lapsed,
    Left,
    LobbyOpened,
    Messaged,
    Opened,
    Parked,
    Paused,
    Purged,
    Readmitted,
    Record,
    Redeemed,
    Released,
    Removed,
    Reopened,
    Resumed,
    Returned,
    Started,
    Transferred,
)
from engine.register import (
    ACTIVE,
    CAUSES,
    COMPLETED,
    EXPIRED,
    LEFT,
    LIVE,
    LOBBY,
    NONE,
    ONE_RELEASE,
    PARKED,
    READMITTED,
    READY,
    REDEEMED,
    REMOVED,
    STATUSES,
    STEPPED_OVER,
    WAITING,
    Register,
    from_little_endian,
    little_endian,
    lobby_key,
)
from engine.settings import Settings, settings_from
from engine.tally import Tally
from engine.views import EventChanged, LineDrawn, PlacesChanged

REQUESTS_KEPT = 1_000
DRAW_STEP = 1_000
ITEMS_PER_PART = 4_000


class Draw(NamedTuple):
    """The lobby's draw, as far as it is known: `seed` and `beacon_value` are None until the event has opened."""

    draw_id: str
    commitment: str
    beacon: str | None
    seed: str | None = None
    beacon_value: str | None = None
    count: int | None = None  # type: ignore[assignment]
    entries_sha256: str | None = None


class Gap(NamedTuple):
    """Arrivals `first` to `last` may have been given out by an epoch below `epoch`, before `wall_ms`, and got lost."""

    first: int
    last: int
    epoch: int
    wall_ms: int


class Redemption(NamedTuple):
    """What began a session, and what was answered then: `wall_ms` is Unix time, lengths are those promised."""

    request: str | None
    jti: str
    wall_ms: int
    length_ms: int
    limit_length_ms: int


class Ledger:
    """The state of one event's room. Public attributes are read by the room and the views, changed by `apply` alone."""

    def __init__(self, event_id: str, outbox: Outbox, estimator: Estimator) -> None:
        self.event_id = event_id
        self.settings = Settings()
        self.state = "draft"
        self.reason: str | None = None
        self.message: str | None = None
        self.outcome: str | None = None
        self.revision = 0
        self.line = Line()
        self.register = Register()
        self.presence = Presence()
        self.claims = Deadlines()
        self.sessions = Deadlines()
        self.graces = Deadlines()
        self.limits_ms: dict[int, int] = {}
        self.redemptions: dict[int, Redemption] = {}
        self.generations: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.levels: dict[int, int] = {}
        self.banned: dict[str, None] = {}
        self.spent: dict[int, None] = {}
        self.gaps: list[Gap] = []
        self.draw: Draw | None = None
        self.tally = Tally()
        self.estimator = estimator
        self.outbox = outbox
        self.opened = False
        self.serving_number = 0
        self.completed = 0
        self.admitted_since_told = 0
        self.released_under: dict[str, int] = {}
        self.pace_base_ms = 0
        self.last_batch_ms = 0
        self.started_ms = 0
        self.closed_at_ms = 0
        self.extra_inside = 0
        self._suspended_ms = 0
        self._stopped_at_ms: int | None = None
        self._drawing: Drawing | None = None

    # ---- read -----------------------------------------------------------------------------------

    def event_time_ms(self, now_ms: int) -> int:
        """Return the time that stands still while the event is paused."""
        return (now_ms if self._stopped_at_ms is None else self._stopped_at_ms) - self._suspended_ms

    def inside(self) -> int:
        """Return how many count under the cap: ready and active, groups by their size."""
        counts = self.register.counts
        return counts[READY] + counts[ACTIVE] + self.extra_inside

    def queued(self) -> int:
        """Return how many places max_waiting bounds: lobby, waiting and parked."""
        counts = self.register.counts
        return counts[LOBBY] + counts[WAITING] + counts[PARKED]

    def admissions_left(self) -> int | None:
        """Return how many more may be let in of what the operator said is left, None where nothing was said."""
        left = self.settings.admissions_left
        return None if left is None else max(0, left - self.admitted_since_told)

    def deadline_ms(self, arrival: int) -> int | None:
        """Return when grace, claim window or session of an arrival is over, in event time."""
        for deadlines in (self.claims, self.sessions, self.graces):
            if arrival in deadlines.at_ms:
                return deadlines.at_ms[arrival]
        return None

    def undrawn(self) -> int:
        """Return how many of the lobby have no number yet although the event has opened."""
        return 0 if self._drawing is None else max(1, self.register.counts[LOBBY])

    # ---- the draw, in steps ---------------------------------------------------------------------

    def draw_step(self, limit: int = DRAW_STEP) -> bool:
        """Write the next rows of a draw; returns whether there is more to do."""
        drawing, register = self._drawing, self.register
        if drawing is None:
            return False
        boost = self.settings.priority_boost
        for arrival, number in drawing.step(limit) if len(drawing) else ():
            key = order_key(number, self.levels.get(arrival, 0), boost)
            register.number(arrival, number, key)
            if register.status[arrival] == LOBBY:
                register.move(arrival, WAITING)
                self.line.add(key)
        if drawing.done:
            assert self.draw is not None
            self.draw = self.draw._replace(entries_sha256=drawing.entries_sha256)
            self._drawing = None
            self.outbox.announce(LineDrawn(self.event_id, self.outbox.lsn))
        return not drawing.done

    def draw_all(self) -> None:
        """Finish a draw that has begun."""
        while self.draw_step():
            pass

    # ---- apply: events --------------------------------------------------------------------------

    def apply(self, record: Record) -> None:
        """Take in one record of this event; raises Damaged when it cannot follow from the state."""
        _APPLY[type(record)](self, record)

    def started(self, record: Started) -> None:
        """A process took over: everybody counts as just heard, grace begins anew, and a full interval passes first."""
        self.draw_all()
        register = self.register
        if record.gap:
            first = len(register) + 1
            register.skip(record.gap)
            self.gaps.append(Gap(first, len(register), record.epoch, record.wall_ms))
        self.started_ms = record.at_ms
        self._hear_everybody(record.at_ms)
        self.pace_base_ms = self.event_time_ms(record.at_ms)

    def _hear_everybody(self, at_ms: int) -> None:
        self.presence.hear_everybody(len(self.register), at_ms)
        self.graces.restart(self.event_time_ms(at_ms) + self.settings.grace_s * 1000)

    def _configured(self, record: Configured) -> None:
        before = self.settings
        self.settings = settings_from(record.settings)
        self.revision += 1
        if self.settings.admissions_left != before.admissions_left:
            self.admitted_since_told = 0
        self._announce_event()

    def _announce_event(self) -> None:
        self.outbox.announce(EventChanged(self.event_id, self.outbox.lsn + 1))

    def _changed(self, state: str, record: LobbyOpened | Opened | Paused | Resumed | Closed | Reopened) -> None:
        self.state = state
        self.reason = record.reason if isinstance(record, Paused | Closed) else None
        self._announce_event()

    def _lobby_opened(self, record: LobbyOpened) -> None:
        self.draw = Draw(record.draw_id, record.commitment, record.beacon)
        self._changed("lobby", record)

    def _opened(self, record: Opened) -> None:
        if record.seed:
            if self.draw is None:
                raise Damaged(f"event {self.event_id}: a seed was revealed for a draw that was never bound")
            arrivals = self.register.with_status(LOBBY)
            if len(arrivals) != record.count:
                raise Damaged(f"event {self.event_id}: {len(arrivals)} are in the lobby, {record.count} were drawn")
            self.draw = self.draw._replace(seed=record.seed, beacon_value=record.beacon, count=record.count)
            self._drawing = Drawing(mixed(bytes.fromhex(record.seed), record.beacon), arrivals)
            self.register.begin_draw(record.count)
        self._open(record)

    def _open(self, record: Opened | Reopened) -> None:
        self._changed("open", record)
        self.outcome = None
        self.opened = True
        self.pace_base_ms = self.last_batch_ms = self.event_time_ms(record.at_ms)
        self._hear_everybody(record.at_ms)

    def _paused(self, record: Paused) -> None:
        self._changed("paused", record)
        self._stopped_at_ms = record.at_ms

    def _resume_time(self, at_ms: int) -> None:
        if self._stopped_at_ms is not None:
            self._suspended_ms += at_ms - self._stopped_at_ms
            self._stopped_at_ms = None

    def _resumed(self, record: Resumed) -> None:
        self._resume_time(record.at_ms)
        self._changed("open", record)

    def _closed(self, record: Closed) -> None:
        self._resume_time(record.at_ms)
        self._changed("closed", record)
        self.outcome = record.outcome
        self.closed_at_ms = self.event_time_ms(record.at_ms)

    def _messaged(self, record: Messaged) -> None:
        self.message = record.text or None
        self.reason = record.reason or self.reason
        self._announce_event()

    def _banned(self, record: Banned) -> None:
        self.banned[record.user_id] = None

    def _purged(self, record: Purged) -> None:
        count, drawn = len(self.register), self.register.drawn
        self.register = Register()
        self.register.skip(count)
        self.register.drawn = drawn
        self.line = Line()
        for deadlines in (self.claims, self.sessions, self.graces):
            deadlines.forget()
        for name in (*_BY_ARRIVAL, "banned", "spent"):
            getattr(self, name).clear()
        self.gaps.clear()
        self.extra_inside = 0
        self._announce_event()

    # ---- apply: places --------------------------------------------------------------------------

    def _joined(self, record: Joined) -> None:
        register, arrival = self.register, record.arrival
        if arrival != len(register) + 1:
            raise Damaged(f"event {self.event_id}: arrival {arrival} came where {len(register) + 1} was due")
        status = LOBBY if self.state == "lobby" else WAITING
        register.add(record.user_id, record.key, status, record.proof, record.at_ms)
        self.presence.add(record.at_ms, self.settings)
        if record.size > 1:
            self.sizes[arrival] = record.size
        if record.level:
            self.levels[arrival] = record.level
        if record.signed:
            self.spent[record.proof] = None
        if status == WAITING:
            self.line.add(record.key)

    def _readmitted(self, record: Readmitted) -> None:
        register, arrival = self.register, record.arrival
        if not any(gap.first <= arrival <= gap.last for gap in self.gaps) or register.status[arrival] != NONE:
            raise Damaged(f"event {self.event_id}: arrival {arrival} was not lost, so it cannot be readmitted")
        status = LOBBY if self.state == "lobby" else WAITING
        register.fill(arrival, record.user_id, record.key, status, record.at_ms)
        self.presence.hear(arrival, record.at_ms, self.settings)
        if status == WAITING:
            self.line.add(record.key)
        self._announce(arrival, status)

    def _parked(self, record: Parked) -> None:
        grace_until_ms = self.event_time_ms(record.at_ms) + self.settings.grace_s * 1000
        register, line = self.register, self.line
        arrivals = self._arrivals_of(record.numbers)
        for arrival in arrivals:
            if register.status[arrival] != WAITING:
                raise Damaged(f"event {self.event_id}: arrival {arrival} was parked and did not wait")
            line.remove(register.keys[arrival])
            register.set(arrival, PARKED, register.marks[arrival] | STEPPED_OVER)
            self.graces.set(arrival, grace_until_ms)
        self.tally.skipped["absent"] += len(arrivals)
        self.outbox.announce(PlacesChanged(self.event_id, arrivals, "parked", self.outbox.lsn + 1))

    def _returned(self, record: Returned) -> None:
        arrival = record.arrival
        self._require(arrival, PARKED, "returned")
        self.graces.clear(arrival)
        self.register.move(arrival, WAITING)
        self.line.add(self.register.keys[arrival])
        self._announce(arrival, WAITING)

    def _released(self, record: Released) -> None:
        numbers, register = record.numbers, self.register
        if [number_of(key) for key in self.line.head(len(numbers))] != list(numbers):
            raise Damaged(f"event {self.event_id}: released numbers {list(numbers[:5])}… are not the head of the line")
        arrivals = self._arrivals_of(numbers)
        self.line.drop_head(len(numbers))
        limit_ms = self.event_time_ms(record.at_ms) + self.settings.claim_max_s * 1000
        for number, arrival in zip(numbers, arrivals, strict=True):
            self._let_in(arrival, record.until_ms, limit_ms)
            if not record.manual:
                reason = self._reason_for_being_late(arrival)
                waited_ms = record.at_ms - register.joined_ms[arrival]
                self.tally.let_in(number, self.levels.get(arrival, 0), waited_ms, reason)
            else:
                self.tally.waited_ms += record.at_ms - register.joined_ms[arrival]
        self.serving_number = max(self.serving_number, *numbers)
        if record.request is not None:
            self._count_request(record.request, len(numbers))
        self._count_release(record)
        self.outbox.announce(PlacesChanged(self.event_id, arrivals, "ready", self.outbox.lsn + 1))

    def _count_release(self, record: Released) -> None:
        released = len(record.numbers)
        self.tally.fill(self.inside(), self.settings.max_active)
        if record.manual:
            self.tally.manual += released
            return
        self.tally.released += released
        tick_ms = self.event_time_ms(record.at_ms)
        self.estimator.observe(released, tick_ms - self.last_batch_ms)
        self.pace_base_ms = self.last_batch_ms = tick_ms

    def _reason_for_being_late(self, arrival: int) -> str | None:
        marks = self.register.marks[arrival]
        return "returned" if marks & STEPPED_OVER else "readmitted" if marks & READMITTED else None

    def _let_in(self, arrival: int, until_ms: int, limit_ms: int) -> None:
        self.register.set(arrival, READY, self.register.marks[arrival] + ONE_RELEASE)
        self.claims.set(arrival, until_ms)
        self.limits_ms[arrival] = limit_ms
        self.admitted_since_told += 1
        if self.sizes:
            self.extra_inside += self.sizes.get(arrival, 1) - 1

    def _count_request(self, request: str, released: int) -> None:
        counts = self.released_under
        counts[request] = counts.pop(request, 0) + released
        if len(counts) > REQUESTS_KEPT:
            del counts[next(iter(counts))]

    def _admitted(self, record: Admitted) -> None:
        arrival = record.arrival
        status = self.register.status[arrival]
        if status == WAITING:
            self.line.remove(self.register.keys[arrival])
        elif status != PARKED:
            raise Damaged(f"event {self.event_id}: arrival {arrival} was admitted and did not wait")
        self.graces.clear(arrival)
        self._let_in(arrival, record.until_ms, self.event_time_ms(record.at_ms) + self.settings.claim_max_s * 1000)
        self.tally.admitted += 1
        self.tally.fill(self.inside(), self.settings.max_active)
        self._announce(arrival, READY)

    def _lapsed(self, record: Lapsed) -> None:
        arrival = record.arrival
        self._require(arrival, READY, "lapsed")
        self._leave_inside(arrival)
        self.admitted_since_told -= 1
        self.register.set(arrival, PARKED, self.register.marks[arrival] | STEPPED_OVER)
        self.graces.set(arrival, self.event_time_ms(record.at_ms) + self.settings.grace_s * 1000)
        self.tally.skipped["unclaimed"] += 1
        self._announce(arrival, PARKED)

    def _redeemed(self, record: Redeemed) -> None:
        arrival = record.arrival
        self._require(arrival, READY, "redeemed")
        self.claims.clear(arrival)
        self.register.set(arrival, ACTIVE, self.register.marks[arrival] | REDEEMED)
        self.sessions.set(arrival, record.until_ms)
        self.limits_ms[arrival] = record.limit_ms
        event_ms = self.event_time_ms(record.at_ms)
        lengths = (record.until_ms - event_ms, record.limit_ms - event_ms)
        self.redemptions[arrival] = Redemption(record.request, record.jti, record.wall_ms, *lengths)
        self._announce(arrival, ACTIVE)

    def _extended(self, record: Extended) -> None:
        arrival = record.arrival
        deadlines = {READY: self.claims, ACTIVE: self.sessions}.get(self._status(arrival))
        if deadlines is None:
            raise Damaged(f"event {self.event_id}: arrival {arrival} was extended and nothing runs")
        deadlines.set(arrival, record.until_ms)
        self._announce(arrival, self.register.status[arrival])

    def _expired(self, record: Expired) -> None:
        self._end(record, EXPIRED, record.cause)

    def _left(self, record: Left) -> None:
        if self._status(record.arrival) in (LOBBY, WAITING, PARKED):
            self.tally.skipped["left"] += 1
        self._end(record, LEFT, None)

    def _completed(self, record: Completed) -> None:
        if record.late:
            self._require(record.arrival, EXPIRED, "completed late")
            self.register.move(record.arrival, COMPLETED)
            self._announce(record.arrival, COMPLETED)
        else:
            self._end(record, COMPLETED, None)
        self.completed += 1

    def _removed(self, record: Removed) -> None:
        if self._status(record.arrival) in (LOBBY, WAITING, PARKED):
            self.tally.skipped["removed"] += 1
        self._end(record, REMOVED, "removed")

    def _transferred(self, record: Transferred) -> None:
        arrival = record.arrival
        if self._status(arrival) not in LIVE:
            raise Damaged(f"event {self.event_id}: arrival {arrival} was transferred and holds no place")
        self.generations[arrival] = record.generation
        self.register.proofs[arrival] = record.proof
        if record.signed:
            self.spent[record.proof] = None
        self._announce(arrival, self.register.status[arrival])

    # ---- small parts of apply ---------------------------------------------------------------------

    def _end(self, record: Expired | Left | Completed | Removed, status: int, cause: str | None) -> None:
        arrival, register = record.arrival, self.register
        before = self._status(arrival)
        if before not in LIVE:
            raise Damaged(f"event {self.event_id}: arrival {arrival} holds no place that could end")
        if before == WAITING:
            self.line.remove(register.keys[arrival])
        elif before in (READY, ACTIVE):
            self._leave_inside(arrival)
        self.graces.clear(arrival)
        if before == READY and status != COMPLETED:
            self.admitted_since_told -= 1
        register.set(arrival, status, register.marks[arrival] | CAUSES.index(cause))
        register.ended_ms[arrival] = self.event_time_ms(record.at_ms)
        self._announce(arrival, status)

    def _leave_inside(self, arrival: int) -> None:
        self.claims.clear(arrival)
        self.sessions.clear(arrival)
        self.limits_ms.pop(arrival, None)
        self.redemptions.pop(arrival, None)
        self.extra_inside -= self.sizes.get(arrival, 1) - 1

    def _status(self, arrival: int) -> int:
        if not 0 < arrival <= len(self.register):
            raise Damaged(f"event {self.event_id}: arrival {arrival} was never given out")
        return self.register.status[arrival]

    def _require(self, arrival: int, status: int, what: str) -> None:
        if self._status(arrival) != status:
            raise Damaged(f"event {self.event_id}: arrival {arrival} {what} and was not {STATUSES[status]}")

    def _arrivals_of(self, numbers: Sequence[int]) -> tuple[int, ...]:
        if len(self.register.drawn) > 1:
            return tuple(map(self.register.arrival_of, numbers))
        return tuple(numbers)

    def _announce(self, arrival: int, status: int) -> None:
        self.outbox.announce(PlacesChanged(self.event_id, (arrival,), STATUSES[status], self.outbox.lsn + 1))

    # ---- dump and load ----------------------------------------------------------------------------

    def capture(self) -> Iterator[object]:
        """Return the whole state as of now in parts, to be read later and elsewhere; the call itself is short."""
        self.draw_all()
        facts = {name: copy(getattr(self, name)) for name in _DUMPED}
        facts |= {"settings": self.settings.as_map(), "estimator": self.estimator.dump(), "tally": self.tally.dump()}
        facts |= {"draw": self.draw, "gaps": list(self.gaps), "drawn": len(self.register.drawn)}
        facts |= {"digest": self.register.digest(), "rows": len(self.register)}
        tables = [(name, list(getattr(self, name).items())) for name in (*_BY_ARRIVAL, "banned", "spent")]
        tables += [(name, list(getattr(self, name).at_ms.items())) for name in _DEADLINES]
        return _parts(facts, tables, self.register)

    def load(self, facts: Mapping[str, Any], parts: Iterable[Sequence[Any]], now_ms: int) -> None:
        """Take up a captured state; raises Damaged when rows and digest disagree."""
        for name in _DUMPED:
            setattr(self, name, facts[name])
        self.settings = settings_from(facts["settings"])
        self.estimator.load(facts["estimator"])
        self.tally.load(facts["tally"])
        self.draw = Draw(*facts["draw"]) if facts["draw"] else None
        self.gaps = [Gap(*gap) for gap in facts["gaps"]]
        for what, *body in parts:
            _LOADERS[what](self, *body)
        self.register.settle()
        self.presence.hear_everybody(len(self.register), now_ms)
        self.line = Line(self.register.keys_with(WAITING))
        if (len(self.register), self.register.digest()) != (facts["rows"], facts["digest"]):
            raise Damaged(f"event {self.event_id}: the snapshot's rows do not add up to its digest")

    def _load_table(self, name: str, items: Sequence[Sequence[Any]]) -> None:
        if name in _DEADLINES:
            getattr(self, name).load(items)
        elif name == "redemptions":
            self.redemptions.update((arrival, Redemption(*what)) for arrival, what in items)
        else:
            getattr(self, name).update(items)

    def _load_drawn(self, data: bytes) -> None:
        self.register.drawn.extend(from_little_endian(data))

    def check(self) -> None:
        """Assert every invariant of the room; O(n), for tests and `stanchion verify`."""
        self.draw_all()
        register = self.register
        self.line.check()
        register.check()
        self.presence.check(len(register))
        assert len(self.line) == register.counts[WAITING], "line and register count differently"
        assert all(key in self.line for key in register.keys_with(WAITING)), "somebody waiting is not in line"
        for deadlines, status in ((self.claims, READY), (self.sessions, ACTIVE), (self.graces, PARKED)):
            assert set(deadlines.at_ms) == set(register.with_status(status)), f"deadlines of {STATUSES[status]} are off"
        inside = register.with_status(READY) + register.with_status(ACTIVE)
        assert set(self.limits_ms) == set(inside)
        assert set(self.redemptions) == set(register.with_status(ACTIVE))
        assert self.inside() == sum(self.sizes.get(arrival, 1) for arrival in inside)
        for user_id, arrival in register.by_user.items():
            assert register.user_ids[arrival] == user_id
        live = [register.user_ids[arrival] for arrival, status in enumerate(register.status) if status in LIVE]
        assert len(live) == len(set(live)), "one identity holds two places"


def key_at_joining(state: str, arrival: int, level: int, boost: int) -> int:
    """Return the order key of a newcomer: in a lobby without a number, else with the arrival as number."""
    return lobby_key(arrival) if state == "lobby" else order_key(arrival, level, boost)


def _parts(
    facts: Mapping[str, object], tables: Sequence[tuple[str, list[Any]]], register: Register
) -> Iterator[object]:
    drawn, rows = register.drawn, register.capture()
    return _yield_parts(facts, tables, drawn, rows)


def _yield_parts(
    facts: Mapping[str, object], tables: Sequence[tuple[str, list[Any]]], drawn: Any, rows: Iterator[object]
) -> Iterator[object]:
    yield ["room", facts]
    for name, items in tables:
        for first in range(0, len(items), ITEMS_PER_PART):
            yield ["table", name, items[first : first + ITEMS_PER_PART]]
    numbers = iter(range(1, len(drawn), ITEMS_PER_PART))
    for first in numbers:
        yield ["drawn", little_endian(drawn[first : first + ITEMS_PER_PART])]
    for body in rows:
        yield ["rows", body]


_BY_ARRIVAL = ("limits_ms", "redemptions", "generations", "sizes", "levels")
_DEADLINES = ("claims", "sessions", "graces")
_DUMPED = (
    "event_id",
    "state",
    "reason",
    "message",
    "outcome",
    "revision",
    "opened",
    "serving_number",
    "completed",
    "admitted_since_told",
    "released_under",
    "last_batch_ms",
    "started_ms",
    "closed_at_ms",
    "extra_inside",
    "_suspended_ms",
    "_stopped_at_ms",
)
_LOADERS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "table": Ledger._load_table,
        "drawn": Ledger._load_drawn,
        "rows": lambda ledger, body: ledger.register.load(body),
    }
)

_APPLY: Mapping[type[Record], Callable[[Ledger, Any], None]] = {
    Configured: Ledger._configured,
    LobbyOpened: Ledger._lobby_opened,
    Opened: Ledger._opened,
    Reopened: Ledger._open,
    Paused: Ledger._paused,
    Resumed: Ledger._resumed,
    Closed: Ledger._closed,
    Deleted: lambda ledger, record: None,
    Messaged: Ledger._messaged,
    Joined: Ledger._joined,
    Readmitted: Ledger._readmitted,
    Parked: Ledger._parked,
    Returned: Ledger._returned,
    Released: Ledger._released,
    Admitted: Ledger._admitted,
    Lapsed: Ledger._lapsed,
    Redeemed: Ledger._redeemed,
    Extended: Ledger._extended,
    Expired: Ledger._expired,
    Left: Ledger._left,
    Completed: Ledger._completed,
    Removed: Ledger._removed,
    Banned: Ledger._banned,
    Transferred: Ledger._transferred,
    Purged: Ledger._purged,
}
