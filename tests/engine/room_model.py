"""The room in plain lists: what docs/states.md says, written from there and not from the room.

No structure is clever here: a place is a `Row`, the line is sorted anew whenever somebody asks, every rule stands
once, in the words of the tables. What the model would refuse it raises as `No` with every code that fits (a join can
be wrong in two ways at once). `wrote` collects the kinds of the records that a step is to write.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from struct import pack

from engine.actor import By, Entrant, Holder, Whom
from engine.settings import Settings
from tests.engine.event_model import EventModel, Gap, No

LIVE = ("lobby", "waiting", "parked", "ready", "active")
INSIDE = ("ready", "active")
LEEWAY_MS = 5_000


@dataclass
class Row:
    """One place. Times of windows are event time, `heard_ms` is time of the presence clock."""

    arrival: int
    user_id: str
    joined_ms: int
    proof: int = 0
    level: int = 0
    size: int = 1
    status: str = "waiting"
    cause: str | None = None
    number: int | None = None
    key: tuple[int, int] = (0, 0)
    generation: int = 0
    heard_ms: int = 0
    hidden: bool = False
    until_ms: int = 0
    limit_ms: int = 0
    releases: int = 0
    jti: str | None = None
    request: str | None = None
    session_ms: int = 0
    ended_ms: int = 0
    drawn_late: bool = False


@dataclass
class RoomModel:
    """One event and its places. Deciding steps raise No; `now_ms` comes last, as in the room."""

    event: EventModel = field(default_factory=EventModel)
    rows: list[Row] = field(default_factory=list)
    next_arrival: int = 1
    banned: set[str] = field(default_factory=set)
    spent: set[int] = field(default_factory=set)
    clock_ms: int = 0
    last_heard_ms: int = 0
    drawing: bool = False
    gaps: list[Gap] = field(default_factory=list)
    serving_number: int = 0
    released: list[int] = field(default_factory=lambda: [0, 0])

    def copy(self) -> "RoomModel":
        """Return the same again, to go back to."""
        new = RoomModel(replace(self.event, wrote=[]), [replace(row) for row in self.rows], self.next_arrival)
        new.banned, new.spent, new.gaps = set(self.banned), set(self.spent), list(self.gaps)
        new.clock_ms, new.last_heard_ms, new.drawing = self.clock_ms, self.last_heard_ms, self.drawing
        new.serving_number, new.released = self.serving_number, list(self.released)
        return new

    @property
    def settings(self) -> Settings:
        """The settings as they now are."""
        return self.event.settings

    @property
    def wrote(self) -> list[str]:
        """The kinds of records that the step is to write."""
        return self.event.wrote

    # ---- reading ----------------------------------------------------------------------------------

    def line(self) -> list[Row]:
        """Return who waits, the first first."""
        return sorted((row for row in self.rows if row.status == "waiting"), key=lambda row: row.key)

    def inside(self) -> int:
        """Return how much of the cap is taken."""
        return sum(row.size for row in self.rows if row.status in INSIDE)

    def free(self, inside: int | None = None) -> int:
        """Return how much of the cap a release may still take."""
        most, margin = self.settings.max_active, self.settings.safety_margin
        return 10**9 if most is None else max(0, most - margin - (self.inside() if inside is None else inside))

    def newest(self, user_id: str) -> Row | None:
        """Return the place that an identity took last."""
        return next((row for row in reversed(self.rows) if row.user_id == user_id), None)

    def present(self, row: Row) -> bool:
        """Return whether somebody counts as present."""
        settings = self.settings
        patience_s = settings.presence_timeout_hidden_s if row.hidden else settings.presence_timeout_s
        return self.clock_ms <= row.heard_ms + patience_s * 1000

    # ---- the event --------------------------------------------------------------------------------

    def configure(self, changes: dict[str, object], by: By) -> None:
        """Change settings; nobody in line may lose the way in by it, or be overtaken by an equal."""
        self.event.configure(changes, by, self._fits)

    def _fits(self, changed: set[str], after: Settings) -> bool:
        rows = [row for row in self.rows if row.status in ("lobby", "waiting", "parked", "ready")]
        most = after.max_active
        too_large = most is not None and any(row.size > max(1, most - after.safety_margin) for row in rows)
        return not too_large and not ("priority_boost" in changed and any(row.level for row in rows))

    def open(self, by: By, value: str | None, now_ms: int) -> None:
        """Open, or open again; a lobby is drawn."""
        how = self.event.open(by, value, now_ms)
        if how == "drawn":
            self._draw(value)
        if how != "=":
            self._hear_everybody(now_ms)

    def _draw(self, value: str | None) -> None:
        """Give the numbers from 1 on to those in the lobby, by the hash of seed and arrival."""
        secret, beacon = self.event.secret, self.event.beacon
        seed = secret if beacon is None or value is None else hashlib.sha256(secret + value.encode()).digest()
        lobby = [row for row in self.rows if row.status == "lobby"]
        lobby.sort(key=lambda row: hashlib.sha256(seed + pack(">Q", row.arrival)).digest())
        self.event.drawn = tuple(sorted(row.arrival for row in lobby))
        for number, row in enumerate(lobby, 1):
            row.status, row.drawn_late = "waiting", True
            self._number(row, number)
        self.drawing = bool(lobby)

    def drawn(self) -> None:
        """Everybody's number is written."""
        self.drawing = False
        for row in self.rows:
            row.drawn_late = False

    def delete(self) -> None:
        """Check that the event may go."""
        if self.event.state not in ("draft", "closed") or self.inside():
            raise No("conflict")
        self.wrote.append("deleted")

    def start(self, now_ms: int, wall_ms: int, epoch: int, gap: int) -> None:
        """Begin an epoch: presence and grace are fresh, and where history may be lost numbers go on behind a gap."""
        if gap:
            self.gaps.append(Gap(self.next_arrival, self.next_arrival + gap - 1, epoch, wall_ms))
            self.next_arrival += gap
        self.event.start(now_ms)
        self._hear_everybody(now_ms)

    # ---- presence ---------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        """The presence clock goes on whenever anybody is heard, by half a timeout at most for one silence."""
        silence_ms = now_ms - self.last_heard_ms
        self.clock_ms += min(silence_ms, self.settings.presence_timeout_s * 1000 // 2)
        self.last_heard_ms = now_ms

    def _hear(self, row: Row, now_ms: int, *, visible: bool = True) -> None:
        """Only of those who still have to come in does it matter whether they are there."""
        if row.status not in ("lobby", "waiting", "parked", "ready"):
            return
        self._advance(now_ms)
        row.heard_ms, row.hidden = self.clock_ms, not visible
        if row.status == "parked" and visible:
            row.status = "waiting"
            self.wrote.append("returned")

    def _hear_everybody(self, now_ms: int) -> None:
        """Everybody in line counts as just heard, and whoever is parked has the whole grace again."""
        self.last_heard_ms = now_ms
        for row in self.rows:
            row.heard_ms, row.hidden = self.clock_ms, False
            if row.status == "parked":
                row.until_ms = self.event.time_ms(now_ms) + self.settings.grace_s * 1000

    # ---- releases ---------------------------------------------------------------------------------

    def release(self, count: int, now_ms: int, *, manual: bool, walk: int = 10**9) -> tuple[int, int]:
        """Let the first present ones in, passing over the absent; returns (released, stepped over)."""
        if manual and self.event.state not in ("open", "paused"):
            raise No("conflict")
        if self.event.state not in ("open", "paused" if manual else "open"):
            return 0, 0
        taken, absent, free = list[Row](), list[Row](), self.free()
        for row in self.line()[:walk]:
            if len(taken) == count or free == 0 or (self.present(row) and row.size > free):
                break
            if self.present(row):
                taken.append(row)
                free -= row.size
            else:
                absent.append(row)
        for row in absent:
            self._park(row, now_ms)
        for row in taken:
            self._let_in(row, now_ms)
            self.serving_number = max(self.serving_number, row.number or 0)
        self._note_release(len(taken), len(absent), manual, now_ms)
        return len(taken), len(absent)

    def _note_release(self, taken: int, absent: int, manual: bool, now_ms: int) -> None:
        self.wrote.extend(["parked"] * bool(absent) + ["released"] * bool(taken))
        self.released[manual] += taken
        if taken and not manual:
            self.event.tick_ms = self.event.time_ms(now_ms)

    def _park(self, row: Row, now_ms: int) -> None:
        row.status, row.until_ms = "parked", self.event.time_ms(now_ms) + self.settings.grace_s * 1000

    def _let_in(self, row: Row, now_ms: int) -> None:
        row.status, row.releases = "ready", row.releases + 1
        row.until_ms = self.event.time_ms(now_ms) + self.settings.claim_window_s * 1000
        row.limit_ms = self.event.time_ms(now_ms) + self.settings.claim_max_s * 1000

    def expire(self, now_ms: int) -> None:
        """Run every clock that is out."""
        if self.event.state not in ("open", "closed"):
            return
        event_ms = self.event.time_ms(now_ms)
        for row in self.rows:
            if row.status == "ready" and event_ms >= row.until_ms + LEEWAY_MS:
                self._unclaimed(row, now_ms)
            if row.status == "active" and event_ms >= row.until_ms:
                self._end(row, now_ms, "expired", cause="session")
            if row.status == "parked" and event_ms >= row.until_ms and self.event.state == "open":
                self._end(row, now_ms, "expired", cause="absent")
        over_ms = self.event.closed_ms + self.settings.retention_s * 1000
        if self.event.state == "closed" and event_ms >= over_ms and self.rows and not self.inside():
            for kept in (self.rows, self.banned, self.spent, self.gaps):
                kept.clear()
            self.wrote.append("purged")

    def _unclaimed(self, row: Row, now_ms: int) -> None:
        if self.settings.redemption == "offline":
            self._begin_session(row, "", None, now_ms)
        elif row.releases == 1:
            self._park(row, now_ms)
            self.wrote.append("lapsed")
        else:
            self._end(row, now_ms, "expired", cause="unclaimed")

    def _end(self, row: Row, now_ms: int, kind: str, cause: str | None = None) -> None:
        row.status, row.cause, row.ended_ms = kind, cause, self.event.time_ms(now_ms)
        self.wrote.append(kind)

    # ---- visitors ---------------------------------------------------------------------------------

    def join(self, entrant: Entrant, now_ms: int) -> tuple[Row, bool, bool]:
        """Return (place, fresh, proven)."""
        row = self.newest(entrant.user_id)
        if row is not None and row.status in LIVE:
            return row, False, self._join_again(row, entrant, now_ms)
        wrong = list(self._wrong_with_join(entrant))
        if wrong:
            raise No(*wrong)
        row = Row(self.next_arrival, entrant.user_id, now_ms, entrant.proof, entrant.level, entrant.size)
        self.next_arrival += 1
        self.rows.append(row)
        self._hear(row, now_ms)
        if self.event.state == "lobby":
            row.status = "lobby"
        else:
            self._number(row, row.arrival)
        if entrant.word == "enqueue":
            self.spent.add(entrant.proof)
        self.wrote.append("joined")
        return row, True, True

    def _wrong_with_join(self, entrant: Entrant) -> Iterator[str]:
        settings = self.settings
        in_front = sum(row.status in ("lobby", "waiting", "parked") for row in self.rows)
        yield from self._shut(entrant.user_id)
        if settings.join_policy == "signed" and entrant.word == "visitor":
            yield "bad_enqueue_token"
        if entrant.size > self.free(inside=0):
            yield "at_capacity"
        if entrant.word == "enqueue" and entrant.proof in self.spent:
            yield "enqueue_token_used"
        if settings.queueing == "reject":
            yield "rejecting"
        if settings.max_waiting is not None and in_front >= settings.max_waiting:
            yield "queue_full"

    def _shut(self, user_id: str) -> list[str]:
        shut = {"draft": ["not_open"], "closed": ["closed"]}.get(self.event.state, [])
        return shut + ["banned"] * (user_id in self.banned)

    def _join_again(self, row: Row, entrant: Entrant, now_ms: int) -> bool:
        """With proof it is a touch; a site key, or an enqueue token not used before, takes the place over."""
        proven = entrant.proof != 0 and entrant.proof == row.proof
        anew = entrant.word == "site" or (entrant.word == "enqueue" and entrant.proof not in self.spent)
        if not proven and anew:
            row.generation, row.proof, proven = row.generation + 1, entrant.proof, True
            self.wrote.append("transferred")
            if entrant.word == "enqueue":
                self.spent.add(entrant.proof)
        if proven:
            self._hear(row, now_ms)
        return proven

    def _number(self, row: Row, number: int) -> None:
        row.number = number
        row.key = max(1, number - row.level * self.settings.priority_boost), number

    def held(self, holder: Holder) -> Row:
        """Return the place a token speaks of."""
        for row in self.rows:
            if (row.arrival, row.user_id) == (holder.arrival, holder.user_id):
                return row
        raise No("not_found")

    def touch(self, holder: Holder, now_ms: int, *, visible: bool = True) -> tuple[Row, bool]:
        """Return (place, proven); older tokens only read."""
        row = self.held(holder)
        if holder.generation < row.generation:
            return row, False
        self._hear(row, now_ms, visible=visible)
        return row, True

    def _current(self, holder: Holder) -> Row:
        row = self.held(holder)
        if holder.generation < row.generation:
            raise No("read_only")
        return row

    def leave(self, holder: Holder, now_ms: int) -> None:
        """Give the place up."""
        row = self._current(holder)
        if row.status in LIVE:
            self._end(row, now_ms, "left")

    def extend_claim(self, holder: Holder, now_ms: int) -> Row:
        """More time for the claim window."""
        row = self._current(holder)
        self._check_extend(row, "ready")
        self._extend(row, self.settings.claim_window_s, now_ms)
        return row

    def extend_session(self, whom: Whom, now_ms: int) -> Row:
        """More time for the session."""
        row = self.meant(whom)
        self._check_extend(row, "active")
        self._extend(row, self.settings.session_ttl_s, now_ms)
        return row

    def _check_extend(self, row: Row, needed: str) -> None:
        if row.status == "expired":
            raise No("gone")
        if row.status != needed:
            raise No("not_active")

    def _extend(self, row: Row, window_s: int, now_ms: int) -> None:
        until_ms = min(self.event.time_ms(now_ms) + window_s * 1000, row.limit_ms)
        if until_ms > row.until_ms:
            row.until_ms = until_ms
            self.wrote.append("extended")

    def transfer(self, holder: Holder, proof: int, now_ms: int) -> Row:
        """Give the place to another holder."""
        row = self.held(holder)
        if holder.generation == row.generation - 1 and proof != 0 and proof == row.proof:
            self._hear(row, now_ms)
            return row
        if row.status not in LIVE:
            raise No("conflict", "read_only", "gone")
        if holder.generation < row.generation:
            raise No("read_only", "gone")
        row.generation, row.proof = row.generation + 1, proof
        self.wrote.append("transferred")
        self._hear(row, now_ms)
        return row

    def readmit(self, holder: Holder, epoch: int, issued_ms: int, now_ms: int) -> Row:
        """Take up a place out of a lost tail."""
        taken = any(row.arrival == holder.arrival for row in self.rows)
        other = self.newest(holder.user_id)
        holds = other is not None and other.status in LIVE
        gaps = [gap for gap in self.gaps if gap.first <= holder.arrival <= gap.last]
        lost = any(epoch < gap.epoch and issued_ms <= gap.wall_ms for gap in gaps)
        if not gaps:
            raise No("not_found")
        if not lost or taken or holds:
            raise No("gone", *self._shut(holder.user_id))
        if self._shut(holder.user_id):
            raise No(*self._shut(holder.user_id))
        row = Row(holder.arrival, holder.user_id, now_ms, status="lobby" if self.event.state == "lobby" else "waiting")
        row.generation = holder.generation
        if row.status == "waiting":
            self._number(row, row.arrival)
        self.rows.append(row)
        self.wrote.append("readmitted")
        self._hear(row, now_ms)
        return row

    # ---- the site and the operator ----------------------------------------------------------------

    def meant(self, whom: Whom) -> Row:
        """Return whose place is meant: of a user_id the newest."""
        for row in reversed(self.rows):
            if whom.user_id == row.user_id or whom.arrival == row.arrival:
                return row
            if whom.number is not None and whom.number == row.number:
                return row
        raise No("not_found")

    def redeem(self, number: int, release: int, user_id: str, jti: str, request: str | None, now_ms: int) -> Row:
        """A pass is shown: once it lets in."""
        row = next((row for row in self.rows if row.number == number), None)
        if row is None or row.user_id != user_id:
            raise No("pass_expired", "gone", "bad_token")
        used = row.jti is not None and release == row.releases
        if row.status == "active" and used and request is not None and row.request == request:
            return row
        if used or (row.status == "completed" and release == row.releases):
            raise No("pass_used")
        if row.status in ("active", "completed"):
            raise No("pass_used", "pass_expired")
        if row.status != "ready" or release != row.releases:
            raise No("pass_expired")
        self._begin_session(row, jti, request, now_ms)
        return row

    def _begin_session(self, row: Row, jti: str, request: str | None, now_ms: int) -> None:
        event_ms, settings = self.event.time_ms(now_ms), self.settings
        row.status, row.jti, row.request = "active", jti, request
        row.session_ms, row.until_ms = settings.session_ttl_s * 1000, event_ms + settings.session_ttl_s * 1000
        row.limit_ms = event_ms + settings.session_max_s * 1000
        self.wrote.append("redeemed")

    def session(self, row: Row, now_ms: int) -> tuple[str, int, int] | None:
        """Return (status, ms left, ms left at most) of a session, which still shows its last page a while."""
        event_ms = self.event.time_ms(now_ms)
        if row.status == "active":
            return "active", max(0, row.until_ms - event_ms), max(0, row.limit_ms - event_ms)
        left_ms = row.ended_ms + self.settings.exit_grace_s * 1000 - event_ms
        shows = row.status == "completed" and row.jti is not None and left_ms > 0
        return ("completed", left_ms, left_ms) if shows else None

    def complete(self, whom: Whom, now_ms: int) -> Row:
        """The site is done with somebody."""
        row = self.meant(whom)
        if row.status in INSIDE:
            self._end(row, now_ms, "completed")
        elif row.status == "expired" and row.cause == "session":
            row.status = "completed"
            self.wrote.append("completed")
        elif row.status != "completed":
            raise No("not_active")
        return row

    def admit(self, whom: Whom, by: By, now_ms: int) -> Row:
        """An operator lets one in ahead of the others."""
        if not by.reason:
            raise No("bad_request")
        if self.event.state in ("draft", "lobby"):
            raise No("not_open")
        if self.event.state == "closed":
            raise No("conflict")
        row = self.meant(whom)
        if row.status not in LIVE:
            raise No("conflict")
        if row.status in INSIDE:
            return row
        if row.size > self.free():
            raise No("at_capacity")
        self._let_in(row, now_ms)
        self.wrote.append("admitted")
        return row

    def remove(self, whom: Whom, by: By, now_ms: int, *, ban: bool) -> Row:
        """An operator takes a place away, and may shut somebody out; the ban holds even where the place had ended."""
        if not by.reason:
            raise No("bad_request")
        row = self.meant(whom)
        if ban and row.user_id not in self.banned:
            self.banned.add(row.user_id)
            self.wrote.append("banned")
        if row.status not in LIVE:
            raise No("conflict")
        self._end(row, now_ms, "removed", cause="removed")
        return row
