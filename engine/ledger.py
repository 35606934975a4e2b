"""The ledger: all state of one room. `engine.applying` changes it, record by record, and nobody else.

Deadlines are in event time, which stands still while the event is paused.

A draw is the one fact too large for one moment: its record fixes the outcome, and the rows are written in steps
(`draw_step`). Whatever may be decided meanwhile (joining, leaving, a transfer) comes out the same before and after a
step, and everything else, replay included, finishes the draw first (`draw_all`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, NamedTuple

from engine.deadlines import Deadlines
from engine.draw import Drawing
from engine.errors import Damaged
from engine.estimate import Estimator
from engine.line import Line, order_key
from engine.outbox import Outbox
from engine.presence import Presence
from engine.register import (
    ACTIVE,
    LIVE,
    LOBBY,
    PARKED,
    READY,
    STATUSES,
    WAITING,
    Register,
    from_little_endian,
    little_endian,
)
from engine.settings import Settings, settings_from
from engine.tally import Tally
from engine.views import LineDrawn

DRAW_STEP = 1_000
ITEMS_PER_PART = 4_000

# Attributes that are tables of people, by arrival or by who they are: dumped in parts, and what a purge forgets.
TABLES = ("limits_ms", "redemptions", "generations", "sizes", "levels", "banned", "spent")


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
    """The state of one event's room, to be read by anybody; only `engine.applying` changes it."""

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
        self.batch_released = 0
        self.started_ms = 0
        self.closed_at_ms = 0
        self.extra_inside = 0
        self.suspended_ms = 0
        self.stopped_at_ms: int | None = None
        self.drawing: Drawing | None = None

    # ---- read -----------------------------------------------------------------------------------

    def event_time_ms(self, now_ms: int) -> int:
        """Return the time that stands still while the event is paused."""
        return (now_ms if self.stopped_at_ms is None else self.stopped_at_ms) - self.suspended_ms

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
        return 0 if self.drawing is None else max(1, self.register.counts[LOBBY])

    # ---- the draw, in steps ---------------------------------------------------------------------

    def draw_step(self, limit: int = DRAW_STEP) -> bool:
        """Write the next rows of a draw; returns whether there is more to do."""
        drawing, register = self.drawing, self.register
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
            self.drawing = None
            self.outbox.announce(LineDrawn(self.event_id, self.outbox.lsn))
        return not drawing.done

    def draw_all(self) -> None:
        """Finish a draw that has begun."""
        while self.draw_step():
            pass

    # ---- dump and load ----------------------------------------------------------------------------

    def capture(self) -> Iterator[object]:
        """Return the whole state as of now in parts, to be read later and elsewhere; the call itself is short."""
        self.draw_all()
        facts = {name: copy(getattr(self, name)) for name in _DUMPED}
        facts |= {"settings": self.settings.as_map(), "estimator": self.estimator.dump(), "tally": self.tally.dump()}
        facts |= {"draw": self.draw, "gaps": list(self.gaps), "drawn": len(self.register.drawn)}
        facts |= {"digest": self.register.digest(), "rows": len(self.register)}
        tables = [(name, list(getattr(self, name).items())) for name in TABLES]
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
    "suspended_ms",
    "stopped_at_ms",
)
_LOADERS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "table": Ledger._load_table,
        "drawn": Ledger._load_drawn,
        "rows": lambda ledger, body: ledger.register.load(body),
    }
)
