"""The history checker's own model of one event: a plain list, written from docs/states.md, with nothing of the engine.

It replays the records in their order and says of each what does not follow from those before: who may be where, whose
turn it is, when a window may end, and what may never happen twice. Times here are event time, `at_ms` less what the
event was paused for.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

from tests.scenarios.evidence import ENDED, INSIDE, LIVE, Fault, Limits, LogLine

NUMBER_BITS = 32
NUMBER_MASK = (1 << NUMBER_BITS) - 1
SLICE = 1_000
CLAIM_LEEWAY_MS = 5_000
TURNS = 2

# What happens to one place: the statuses it may happen in, and the next one ("" for the same).
MOVES: Mapping[str, tuple[frozenset[str], str]] = MappingProxyType(
    {
        "returned": (frozenset(("parked",)), "waiting"),
        "admitted": (frozenset(("waiting", "parked")), "ready"),
        "lapsed": (frozenset(("ready",)), "parked"),
        "redeemed": (frozenset(("ready",)), "active"),
        "extended": (INSIDE, ""),
        "transferred": (LIVE, ""),
        "left": (LIVE, "left"),
        "removed": (LIVE, "removed"),
        "completed": (INSIDE, "completed"),
        "completed late": (frozenset(("expired",)), "completed"),
        "expired absent": (frozenset(("parked",)), "expired"),
        "expired unclaimed": (frozenset(("ready",)), "expired"),
        "expired session": (frozenset(("active",)), "expired"),
    }
)
# What happens to the event: the states it may happen in, and the next one. "" is a log read from its middle.
EVENT_MOVES: Mapping[str, tuple[frozenset[str], str]] = MappingProxyType(
    {
        "lobbyopened": (frozenset(("draft",)), "lobby"),
        "opened": (frozenset(("draft", "lobby", "closed")), "open"),
        "reopened": (frozenset(("closed",)), "open"),
        "paused": (frozenset(("open",)), "paused"),
        "resumed": (frozenset(("paused",)), "open"),
        "closed": (frozenset(("draft", "lobby", "open", "paused")), "closed"),
        "purged": (frozenset(("closed",)), "closed"),
    }
)
# States of the event in which a record about visitors may be written, where not in all.
STATES_OF: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "joined": frozenset(("lobby", "open", "paused")),
        "parked": frozenset(("open", "paused")),
        "released": frozenset(("open",)),
        "released manual": frozenset(("open", "paused")),
        "admitted": frozenset(("open", "paused")),
        "lapsed": frozenset(("open", "closed")),
        "expired absent": frozenset(("open",)),
        "expired unclaimed": frozenset(("open", "closed")),
        "expired session": frozenset(("open", "closed")),
    }
)
WITHOUT_EFFECT = frozenset(("checkpoint", "messaged", "deleted"))


class Redeem(NamedTuple):
    """A redeem on record, and of which turn it was."""

    lsn: int
    jti: str
    request: str | None
    turn: int


class Stepped(NamedTuple):
    """Who was stepped over, when, and when they had been heard last, in `at_ms`."""

    lsn: int
    at_ms: int
    arrival: int
    timeout_ms: int


@dataclass(slots=True)
class Row:
    """One place and its way; `is_fixed` says that a window of it began that nothing could make longer."""

    arrival: int
    user_id: str
    key: int
    joined_lsn: int
    heard_ms: int
    size: int = 1
    level: int = 0
    status: str = ""
    ended_lsn: int | None = None
    turns: int = 0
    until_ms: int = 0
    limit_ms: int = 0
    is_fixed: bool = False
    statuses: list[tuple[int, str]] = field(default_factory=list)
    generations: list[tuple[int, int]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    redeems: list[Redeem] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Return the queue number, 0 in the lobby."""
        return self.key & NUMBER_MASK

    @property
    def generation(self) -> int:
        """Return the generation of the tokens that hold the place."""
        return self.generations[-1][1] if self.generations else 0

    def generation_at(self, lsn: int) -> int:
        """Return the generation as of an LSN."""
        return max((generation for since, generation in self.generations if since <= lsn), default=0)

    def status_at(self, lsn: int) -> str:
        """Return the status as of an LSN, "" before the place was made."""
        return next((status for since, status in reversed(self.statuses) if since <= lsn), "")

    def turn_at(self, lsn: int) -> int:
        """Return how often the place had been let in as of an LSN."""
        return sum(status == "ready" and since <= lsn for since, status in self.statuses)


class PlainLine:
    """One event as a plain list: replays records and says what does not follow from those before.

    `moves` are the steps into the line (+1) and out of it (-1), as (LSN, arrival, step); `stepped_over` all parkings.
    """

    def __init__(self) -> None:
        self.line: list[int] = []
        self.rows: dict[int, Row] = {}
        self.arrival_of: dict[int, int] = {}
        self.live: dict[str, int] = {}
        self.banned: dict[str, int] = {}
        self.moves: list[tuple[int, int, int]] = []
        self.stepped_over: list[Stepped] = []
        self.states: list[tuple[int, str]] = [(0, "")]
        self.limits = Limits()
        self.inside = 0
        self.newest = 0
        self.epoch = 0
        self.lsn = 0
        self.purged_lsn = 0
        self._gaps: list[range] = []
        self._heard_ms = 0
        self._suspended_ms = 0
        self._stopped_ms: int | None = None
        self._pending: tuple[list[int], list[int]] | None = None

    @property
    def state(self) -> str:
        """Return the event's state, "" where the log does not tell."""
        return self.states[-1][1]

    def apply(self, line: LogLine) -> Iterator[Fault]:
        """Take in one record; yields what is wrong with it."""
        if line.lsn <= self.lsn:
            yield "duplicated", f"LSN {line.lsn} follows LSN {self.lsn}"
        self.lsn = line.lsn
        if line.kind in WITHOUT_EFFECT:
            return
        if self._pending is not None:
            yield from self._check_stepped_over(line)
        name = _name_of(line)
        states = STATES_OF.get(name)
        if states is not None and self.state and self.state not in states:
            yield "diverged", f"LSN {line.lsn}: {name} while the event is {self.state}"
        if line.kind in _HANDLERS:
            yield from _HANDLERS[line.kind](self, line)
        elif line.kind in EVENT_MOVES:
            yield from self._event(line)
        elif name in MOVES:
            yield from self._visitor(line, name)
        else:
            yield "diverged", f"LSN {line.lsn}: {line.kind} is no kind that is known here"

    def event_ms(self, line: LogLine) -> int:
        """Return the event time of a record."""
        return (line.at_ms if self._stopped_ms is None else self._stopped_ms) - self._suspended_ms

    # ---- the event ----------------------------------------------------------------------------------

    def _configured(self, line: LogLine) -> Iterator[Fault]:
        if line.settings is None:
            yield "diverged", f"LSN {line.lsn}: settings without settings"
            return
        if line.settings != self.limits:
            for row in self.rows.values():
                row.is_fixed = row.is_fixed or row.status in INSIDE
        self.limits = line.settings
        if not self.state:
            self.states.append((line.lsn, "draft"))

    def _started(self, line: LogLine) -> Iterator[Fault]:
        if line.epoch <= self.epoch:
            yield "epoch", f"LSN {line.lsn}: epoch {line.epoch} follows epoch {self.epoch}"
        self.epoch = line.epoch
        if line.gap:
            self._gaps.append(range(self.newest + 1, self.newest + line.gap + 1))
            self.newest += line.gap
        self._hear_everybody(line)

    def _hear_everybody(self, line: LogLine) -> None:
        self._heard_ms = line.at_ms
        for row in self.rows.values():
            if row.status == "parked":
                row.until_ms = self.event_ms(line) + self.limits.grace_s * 1000

    def _event(self, line: LogLine) -> Iterator[Fault]:
        allowed, state = EVENT_MOVES[line.kind]
        if self.state and self.state not in allowed:
            yield "diverged", f"LSN {line.lsn}: {line.kind} while the event is {self.state}"
        if line.kind in ("resumed", "closed") and self._stopped_ms is not None:
            self._suspended_ms += line.at_ms - self._stopped_ms
            self._stopped_ms = None
        if line.kind == "opened" and line.seed:
            yield from self._draw(line)
        if line.kind == "purged":
            yield from self._purge(line)
        self.states.append((line.lsn, state))
        if line.kind == "paused":
            self._stopped_ms = line.at_ms
        if state == "open" and line.kind != "resumed":
            self._hear_everybody(line)

    def _draw(self, line: LogLine) -> Iterator[Fault]:
        """Give the lobby its numbers, as docs/draw.md says: in the order of the hash of seed and arrival."""
        lobby = [row for row in self.rows.values() if row.status == "lobby"]
        if len(lobby) != line.count:
            yield "diverged", f"LSN {line.lsn}: {line.count} were drawn, {len(lobby)} are in the lobby"
        secret = bytes.fromhex(line.seed)
        seed = secret if line.beacon is None else sha256(secret + line.beacon.encode()).digest()
        lobby.sort(key=lambda row: sha256(seed + row.arrival.to_bytes(8, "big")).digest())
        for number, row in enumerate(lobby, 1):
            row.key = max(1, number - row.level * self.limits.priority_boost) << NUMBER_BITS | number
            self.arrival_of[number] = row.arrival
            self._set(row, line.lsn, "waiting")

    def _purge(self, line: LogLine) -> Iterator[Fault]:
        if self.inside:
            yield "diverged", f"LSN {line.lsn}: a purge while {self.inside} are inside"
        self.purged_lsn = line.lsn
        for known in (self.line, self.arrival_of, self.live, self.banned):
            known.clear()

    # ---- new places -----------------------------------------------------------------------------------

    def _joined(self, line: LogLine) -> Iterator[Fault]:
        number = line.key & NUMBER_MASK
        if line.arrival in self.rows or number in self.arrival_of:
            yield "duplicated", f"LSN {line.lsn}: number {number} or arrival {line.arrival} is given out again"
            return
        if line.arrival != self.newest + 1:
            kind = "lost" if line.arrival > self.newest else "reordered"
            yield kind, f"LSN {line.lsn}: arrival {line.arrival} comes where {self.newest + 1} is due"
        self.newest = max(self.newest, line.arrival)
        yield from self._add(line)

    def _readmitted(self, line: LogLine) -> Iterator[Fault]:
        if line.arrival in self.rows or not any(line.arrival in gap for gap in self._gaps):
            yield "duplicated", f"LSN {line.lsn}: arrival {line.arrival} was never lost and is readmitted"
            return
        yield from self._add(line)

    def _add(self, line: LogLine) -> Iterator[Fault]:
        user_id = line.user_id
        if user_id in self.live:
            yield "duplicated", f"LSN {line.lsn}: {user_id} holds arrival {self.live[user_id]} and gets {line.arrival}"
        if user_id in self.banned:
            yield "banned", f"LSN {line.lsn}: {user_id} was banned with LSN {self.banned[user_id]} and has a place"
        row = Row(line.arrival, user_id, line.key, line.lsn, line.at_ms, line.size, line.level)
        self.rows[line.arrival] = row
        if row.number:
            self.arrival_of[row.number] = line.arrival
        self.live[user_id] = line.arrival
        self._set(row, line.lsn, "lobby" if self.state == "lobby" else "waiting")

    def _ban(self, line: LogLine) -> Iterator[Fault]:
        if line.user_id in self.banned:
            yield "duplicated", f"LSN {line.lsn}: {line.user_id} is banned already"
        self.banned[line.user_id] = line.lsn

    # ---- releases -------------------------------------------------------------------------------------

    def _parked(self, line: LogLine) -> Iterator[Fault]:
        head = self.line[: 2 * SLICE]
        within = {key & NUMBER_MASK for key in head[:SLICE]}
        timeout_ms = self.limits.presence_timeout_s * 1000
        stepped: list[int] = []
        for number, seen_ms in zip(line.numbers, line.last_seen_ms, strict=True):
            row = self._row_of(number)
            if row is None or row.status != "waiting" or number not in within:
                yield "skipped", f"LSN {line.lsn}: parked {number}, who is {row and row.status} or not at the head"
                continue
            heard_ms = max(row.heard_ms, self._heard_ms, seen_ms)
            if line.at_ms - heard_ms <= timeout_ms:
                yield "skipped", f"LSN {line.lsn}: parked {number}, heard {line.at_ms - heard_ms} ms before"
            stepped.append(row.key)
            self.stepped_over.append(Stepped(line.lsn, line.at_ms, row.arrival, timeout_ms))
            row.until_ms = self.event_ms(line) + self.limits.grace_s * 1000
            row.kinds.add("parked")
            self._set(row, line.lsn, "parked")
        if stepped != sorted(stepped):
            yield "skipped", f"LSN {line.lsn}: parked {line.numbers[:5]}… out of order"
        self._pending = (head, stepped)

    def _check_stepped_over(self, line: LogLine) -> Iterator[Fault]:
        """Together with those let in with the next record, those stepped over were the head of the line."""
        assert self._pending is not None
        (head, stepped), self._pending = self._pending, None
        if line.kind == "started":
            return  # the release that belongs to it may have gone with the process
        let_in = line.numbers if line.kind == "released" else []
        count = len(stepped) + len(let_in)
        touched = {key & NUMBER_MASK for key in stepped} | set(let_in)
        if {key & NUMBER_MASK for key in head[:count]} != touched and len(touched) == count:
            yield "skipped", f"LSN {line.lsn}: {sorted(touched)[:5]}… were stepped over or let in and are not the head"

    def _released(self, line: LogLine) -> Iterator[Fault]:
        head = [key & NUMBER_MASK for key in self.line[: len(line.numbers)]]
        if head != line.numbers:
            yield "skipped", f"LSN {line.lsn}: released {line.numbers[:5]}… where {head[:5]}… were the head"
        for number in line.numbers:
            row = self._row_of(number)
            if row is None or row.status != "waiting":
                yield "skipped", f"LSN {line.lsn}: released {number}, who is {row and row.status}"
                continue
            row.kinds.add("released")
            yield from self._let_in(row, line)
        yield from self._check_cap(line)

    def _let_in(self, row: Row, line: LogLine) -> Iterator[Fault]:
        event_ms = self.event_ms(line)
        row.turns += 1
        if row.turns > TURNS:
            yield "diverged", f"LSN {line.lsn}: arrival {row.arrival} is let in for the {row.turns}th time"
        row.until_ms, row.limit_ms = line.until_ms, event_ms + self.limits.claim_max_s * 1000
        yield from self._check_length(row, line, event_ms + self.limits.claim_window_s * 1000)
        self._set(row, line.lsn, "ready")

    def _check_length(self, row: Row, line: LogLine, due_ms: int) -> Iterator[Fault]:
        row.is_fixed = row.is_fixed or self._stopped_ms is not None or row.until_ms >= row.limit_ms
        if line.until_ms != due_ms:
            kind = "beyond_limit" if line.until_ms > due_ms else "cut_short"
            yield kind, f"LSN {line.lsn}: {line.kind} of arrival {row.arrival} until {line.until_ms}, not {due_ms}"

    def _check_cap(self, line: LogLine) -> Iterator[Fault]:
        cap = self.limits.max_active
        if cap is not None and self.inside > cap - self.limits.safety_margin:
            yield "over_cap", f"LSN {line.lsn}: {self.inside} are inside, {cap - self.limits.safety_margin} may be"

    # ---- one place ------------------------------------------------------------------------------------

    def _visitor(self, line: LogLine, name: str) -> Iterator[Fault]:
        row = self.rows.get(line.arrival)
        allowed, status = MOVES[name]
        if row is None or row.status not in allowed or row.joined_lsn < self.purged_lsn:
            yield _kind_of_wrong_move(row, line), f"LSN {line.lsn}: {name} of arrival {line.arrival}, {_told(row)}"
            return
        row.kinds.add(line.kind)
        if name in _CHECKS:
            yield from _CHECKS[name](self, row, line)
        if name == "admitted":
            yield from self._let_in(row, line)
            yield from self._check_cap(line)
        elif status:
            self._set(row, line.lsn, status)

    def _lapse(self, row: Row, line: LogLine) -> Iterator[Fault]:
        yield from self._check_over(row, line, CLAIM_LEEWAY_MS)
        first = line.kind == "lapsed"
        if first != (row.turns == 1):
            yield "cut_short", f"LSN {line.lsn}: {line.kind} of arrival {row.arrival} at turn {row.turns}"
        if first:
            row.until_ms = self.event_ms(line) + self.limits.grace_s * 1000

    def _check_over(self, row: Row, line: LogLine, leeway_ms: int = 0) -> Iterator[Fault]:
        early_ms = row.until_ms + leeway_ms - self.event_ms(line)
        if early_ms > 0:
            yield "cut_short", f"LSN {line.lsn}: {line.kind} of arrival {row.arrival}, {early_ms} ms too early"

    def _redeem(self, row: Row, line: LogLine) -> Iterator[Fault]:
        event_ms = self.event_ms(line)
        row.redeems.append(Redeem(line.lsn, line.jti, line.request, row.turns))
        row.until_ms, row.limit_ms = line.until_ms, line.limit_ms
        yield from self._check_length(row, line, event_ms + self.limits.session_ttl_s * 1000)
        if line.limit_ms > event_ms + self.limits.session_max_s * 1000:
            yield "beyond_limit", f"LSN {line.lsn}: a session of arrival {row.arrival} may last too long"

    def _extend(self, row: Row, line: LogLine) -> Iterator[Fault]:
        length_s = self.limits.claim_window_s if row.status == "ready" else self.limits.session_ttl_s
        most_ms = min(row.limit_ms, self.event_ms(line) + length_s * 1000)
        if not row.until_ms < line.until_ms <= most_ms:
            kind = "beyond_limit" if line.until_ms > most_ms else "cut_short"
            yield (
                kind,
                f"LSN {line.lsn}: extended {row.arrival} to {line.until_ms}; {row.until_ms} to {most_ms} is right",
            )
        row.until_ms = line.until_ms

    def _transfer(self, row: Row, line: LogLine) -> Iterator[Fault]:
        if line.generation != row.generation + 1:
            yield "generation", f"LSN {line.lsn}: generation {line.generation} follows {row.generation}"
        row.generations.append((line.lsn, line.generation))

    def _hear(self, row: Row, line: LogLine) -> Iterator[Fault]:
        row.heard_ms = line.at_ms
        yield from ()

    def _set(self, row: Row, lsn: int, status: str) -> None:
        """Move a place into a status; the line and the count of those inside go with it."""
        if row.status == "waiting":
            del self.line[bisect_left(self.line, row.key)]
            self.moves.append((lsn, row.arrival, -1))
        if status == "waiting":
            insort(self.line, row.key)
            self.moves.append((lsn, row.arrival, 1))
        self.inside += row.size * ((status in INSIDE) - (row.status in INSIDE))
        if status in ENDED and row.ended_lsn is None:
            row.ended_lsn = lsn
            self.live.pop(row.user_id, None)
        row.status = status
        row.statuses.append((lsn, status))

    def _row_of(self, number: int) -> Row | None:
        return self.rows.get(self.arrival_of.get(number, 0))


def _name_of(line: LogLine) -> str:
    """Return the kind with what tells its rows in docs/states.md apart."""
    if line.kind == "expired":
        return f"expired {line.cause}"
    marks = {"completed": "late" * line.late, "released": "manual" * line.manual}
    return f"{line.kind} {marks.get(line.kind, '')}".rstrip()


def _told(row: Row | None) -> str:
    return "who never joined" if row is None else f"who is {row.status}"


def _kind_of_wrong_move(row: Row | None, line: LogLine) -> str:
    """Return what kind of fault it is that something happens to a place where it may not."""
    if row is None:
        return "diverged"
    if line.kind == "redeemed":
        return "redeemed_twice" if any(redeem.turn == row.turns for redeem in row.redeems) else "dead_pass"
    if line.kind == "extended":
        return "outlived"
    if line.kind == "returned":
        return "misplaced" if row.status in LIVE else "resurrected"
    return "resurrected" if row.status in ENDED else "diverged"


_HANDLERS: Mapping[str, Callable[[PlainLine, LogLine], Iterator[Fault]]] = MappingProxyType(
    {
        "configured": PlainLine._configured,
        "started": PlainLine._started,
        "joined": PlainLine._joined,
        "readmitted": PlainLine._readmitted,
        "banned": PlainLine._ban,
        "parked": PlainLine._parked,
        "released": PlainLine._released,
    }
)
_CHECKS: Mapping[str, Callable[[PlainLine, Row, LogLine], Iterator[Fault]]] = MappingProxyType(
    {
        "returned": PlainLine._hear,
        "lapsed": PlainLine._lapse,
        "expired unclaimed": PlainLine._lapse,
        "expired session": PlainLine._check_over,
        "expired absent": PlainLine._check_over,
        "redeemed": PlainLine._redeem,
        "extended": PlainLine._extend,
        "transferred": PlainLine._transfer,
    }
)
