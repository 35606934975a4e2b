"""A room and its model, driven side by side: every input goes to both, and after it both must be the same.

An input is refused by both (with a code that fits) or by neither; both write records of the same kinds; then every
place, the line, the counts and the pace agree. A commit is a drain: what was drained survives a crash, the rest is
lost, and the model goes back to the copy that was made at that commit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from engine import answering, pacing
from engine import venue as venues
from engine.actor import By, Entrant, Holder, Whom
from engine.errors import Refused
from engine.identities import subject_of
from engine.records import Record, kind_of
from engine.room import Room
from engine.views import LineDrawn, Notice, Place, PlacesChanged, Session
from tests.engine.event_model import No
from tests.engine.room_compare import compare, compare_place
from tests.engine.room_judge import judge
from tests.engine.room_model import RoomModel, Row
from tests.engine.rooms import PACER, SECRET, WHY, RecordingVenue, facts

WALL_MS = 1_790_000_000_000
OPS = WHY
SMALL_GAP = 3

T = TypeVar("T")
U = TypeVar("U")


class Commit(NamedTuple):
    """What a crash may go back to: so many records, and the model as it was then."""

    records: int
    model: RoomModel


class Issued(NamedTuple):
    """A queue token that somebody was given."""

    holder: Holder
    epoch: int
    wall_ms: int


class Pair:
    """Event e1 twice. Inputs are named as in the tables; who is meant is said by user_id, or by `Row`."""

    def __init__(self, **knobs: object) -> None:
        self.venue = RecordingVenue()
        self.model = RoomModel()
        self.now_ms = self.start_ms = 1_000
        self.epoch = 1
        self.commits: list[Commit] = []
        self.captured: tuple[int, list[object]] | None = None
        self.issued: list[Issued] = []
        self.venue.start(self.epoch, self.now_ms, self.wall_ms)
        self.create(knobs)

    @property
    def room(self) -> Room:
        """The room itself."""
        return self.venue.room("e1")

    @property
    def wall_ms(self) -> int:
        """Unix time: a wall clock that shows the time of the venue, and some downtime for each epoch."""
        return WALL_MS + self.now_ms + 10**9 * self.epoch

    def create(self, knobs: dict[str, object]) -> None:
        """Create the event as a draft."""
        self.venue.configure("e1", knobs, OPS, self.now_ms, replace=True)
        self.model.configure(knobs, OPS)
        self.model.event.start(self.start_ms)
        self.model.wrote.clear()
        self.commit()

    def wait(self, ms: int) -> None:
        """Let time pass."""
        self.now_ms += ms

    # ---- one input to both ------------------------------------------------------------------------

    def both(self, plain: Callable[[], T], real: Callable[[], U]) -> tuple[T, U] | None:
        """Give one input to both; returns both answers, or None where both refused."""
        first = len(self.venue.outbox.records)
        refusal = answer = None
        try:
            answer = plain()
        except No as no:
            refusal = no
        try:
            given = real()
        except Refused as refused:
            assert refusal is not None, f"refused {refused.code} ({refused.detail}), and should not be"
            assert refused.code in refusal.codes, f"refused {refused.code}, not {refusal}"
            assert refused.status not in (409, 410) or refused.reason, f"{refused.code} without a reason"
            self._same_records(first)
            return None
        assert refusal is None, f"not refused, and should be: {refusal}"
        self._same_records(first)
        return answer, given  # type: ignore[return-value]

    def _same_records(self, first: int) -> None:
        kinds = [kind_of(record) for record in self.venue.outbox.records[first:]]
        wrote = list(self.model.wrote)
        self.model.wrote.clear()
        assert sorted(kinds) == sorted(wrote), f"wrote {kinds}, not {wrote}"

    def _same_place(self, both: tuple[object, Place] | None, *, fresh: bool = False, proven: bool = True) -> None:
        if both is not None:
            row, place = both
            assert isinstance(row, Row)
            compare_place(self.room.ledger, self.model, self.now_ms, row, place)
            assert (place.fresh, place.proven) == (fresh, proven), f"fresh, proven: {place.fresh}, {place.proven}"

    def _same_session(self, both: tuple[Row, Session] | None) -> None:
        if both is not None:
            row, session = both
            assert (session.jti, session.length_ms) == (row.jti or "", row.session_ms)
            assert session == answering.session(self.room.ledger, row.arrival, self.now_ms)

    # ---- visitors ---------------------------------------------------------------------------------

    def join(
        self, user_id: str, proof: int = 0, *, level: int = 0, size: int = 1, word: str = "visitor"
    ) -> tuple[Row, bool, bool] | None:
        """Join, or join again; returns (row, fresh, proven)."""
        entrant = Entrant(user_id, proof, level, size, word)
        both = self.both(lambda: self.model.join(entrant, self.now_ms), lambda: self.room.join(entrant, self.now_ms))
        if both is None:
            return None
        (row, fresh, proven), place = both
        self._same_place((row, place), fresh=fresh, proven=proven)
        if fresh:
            self.issued.append(Issued(self.holder(row), self.epoch, self.wall_ms))
        return row, fresh, proven

    def holder(self, whose: str | Row, older: int = 0) -> Holder:
        """Return the token of a place, or one that is `older` generations old."""
        row = self.model.newest(whose) if isinstance(whose, str) else whose
        if row is None:
            return Holder(99, str(whose), 0)
        return Holder(row.arrival, row.user_id, row.generation - older)

    def touch(self, whose: str | Row, *, visible: bool = True, older: int = 0) -> None:
        """A request, frame or pong of a visitor."""
        holder = self.holder(whose, older)
        both = self.both(
            lambda: self.model.touch(holder, self.now_ms, visible=visible),
            lambda: self.room.touch(holder, self.now_ms, visible=visible),
        )
        if both is not None:
            (row, proven), place = both
            self._same_place((row, place), proven=proven)

    def look(self, whose: str | Row, older: int = 0) -> None:
        """Read a place without presence."""
        holder = self.holder(whose, older)
        both = self.both(lambda: self.model.held(holder), lambda: self.room.held_place(holder, self.now_ms))
        self._same_place(both, proven=both is not None and holder.generation >= both[0].generation)

    def leave(self, whose: str | Row, older: int = 0) -> None:
        """Give a place up."""
        holder = self.holder(whose, older)
        self.both(lambda: self.model.leave(holder, self.now_ms), lambda: self.room.leave(holder, self.now_ms))

    def extend_claim(self, whose: str | Row, older: int = 0) -> None:
        """Ask for more time to claim."""
        holder, now_ms = self.holder(whose, older), self.now_ms
        self._same_place(
            self.both(lambda: self.model.extend_claim(holder, now_ms), lambda: self.room.extend_claim(holder, now_ms))
        )

    def transfer(self, whose: str | Row, proof: int, older: int = 0) -> None:
        """Take a place to another device."""
        holder, now_ms = self.holder(whose, older), self.now_ms
        self._same_place(
            self.both(
                lambda: self.model.transfer(holder, proof, now_ms), lambda: self.room.transfer(holder, proof, now_ms)
            )
        )

    def readmit(self, token: Issued) -> None:
        """Show a token whose place is not known here."""
        shown = (token.holder, token.epoch, token.wall_ms, self.now_ms)
        both = self.both(lambda: self.model.readmit(*shown), lambda: self.room.readmit(*shown))
        self._same_place(both, fresh=bool(both and both[1].fresh), proven=True)

    # ---- site and operator ------------------------------------------------------------------------

    def redeem(self, number: int, release: int, request: str | None = None, user_id: str = "") -> None:
        """Show the pass of a number, as it was minted at its first or second release, for its owner or for another."""
        owner = next((row.user_id for row in self.model.rows if row.number == number), "nobody")
        shown, jti = user_id or owner, f"{number}-{release}"
        what = (subject_of("e1", shown), jti, request, "site", self.wall_ms)
        both = self.both(
            lambda: self.model.redeem(number, release, shown, jti, request, self.now_ms),
            lambda: self.room.redeem(number, release, *what, self.now_ms),
        )
        self._same_session(both)

    def whom(self, whose: str | int | Row) -> Whom:
        """Say who is meant: by user_id, by number, or by arrival."""
        if isinstance(whose, str):
            return Whom(user_id=whose)
        return Whom(number=whose) if isinstance(whose, int) else Whom(arrival=whose.arrival)

    def extend_session(self, whose: str | int | Row) -> None:
        """The site asks for more time."""
        whom, now_ms = self.whom(whose), self.now_ms
        self._same_session(
            self.both(
                lambda: self.model.extend_session(whom, now_ms), lambda: self.room.extend_session(whom, "site", now_ms)
            )
        )

    def complete(self, whose: str | int | Row, outcome: str = "completed") -> None:
        """The site is done with somebody."""
        whom, now_ms = self.whom(whose), self.now_ms
        self._same_place(
            self.both(
                lambda: self.model.complete(whom, now_ms),
                lambda: self.room.complete(whom, outcome, "site", now_ms),
            )
        )

    def admit(self, whose: str | int | Row, by: By = OPS) -> None:
        """An operator lets one in."""
        whom, now_ms = self.whom(whose), self.now_ms
        both = self.both(lambda: self.model.admit(whom, by, now_ms), lambda: self.room.admit(whom, by, now_ms))
        self._same_place(both)

    def remove(self, whose: str | int | Row, by: By = OPS, *, ban: bool = False) -> None:
        """An operator takes a place away."""
        whom, now_ms = self.whom(whose), self.now_ms
        both = self.both(
            lambda: self.model.remove(whom, by, now_ms, ban=ban), lambda: self.room.remove(whom, by, now_ms, ban=ban)
        )
        self._same_place(both)

    def configure(self, by: By = OPS, **changes: object) -> None:
        """Change settings."""
        self.both(lambda: self.model.configure(changes, by), lambda: self.room.configure(changes, by, self.now_ms))

    def lobby(self, beacon: str | None = None, by: By = OPS) -> None:
        """Open the lobby."""
        draw_id = f"draw{self.epoch}"
        self.both(
            lambda: self.model.event.open_lobby(SECRET, beacon),
            lambda: self.room.control("lobby", by, self.now_ms, draw_id=draw_id, secret=SECRET, beacon=beacon),
        )

    def open(self, by: By = OPS, beacon: str | None = None) -> None:
        """Open the event; `beacon` is the value of what was named."""
        now_ms = self.now_ms
        self.both(
            lambda: self.model.open(by, beacon, now_ms),
            lambda: self.room.control("open", by, now_ms, secret=SECRET, beacon=beacon),
        )

    def draw_step(self, limit: int) -> None:
        """Write some rows of a draw."""
        self.room.ledger.draw_step(limit)

    def pause(self, by: By = OPS) -> None:
        """Pause, or hold an opening."""
        now_ms = self.now_ms
        self.both(lambda: self.model.event.pause(by, now_ms), lambda: self.room.control("pause", by, now_ms))

    def resume(self, by: By = OPS) -> None:
        """Go on."""
        self.both(lambda: self.model.event.resume(self.now_ms), lambda: self.room.control("resume", by, self.now_ms))

    def close(self, by: By = OPS, outcome: str | None = None) -> None:
        """Close the event."""
        now_ms = self.now_ms
        self.both(
            lambda: self.model.event.close(by, outcome, now_ms),
            lambda: self.room.control("close", by, now_ms, outcome=outcome),
        )

    def delete(self, then: dict[str, object]) -> None:
        """Delete the event, and make it anew where that was allowed."""
        if self.both(lambda: self.model.delete(), lambda: self.venue.delete("e1", OPS, self.now_ms)) is not None:
            self.model = RoomModel()
            self.issued.clear()
            self.create(then)

    def tell(self, text: str) -> None:
        """Tell everybody something."""
        self.both(lambda: self.model.event.tell(text), lambda: self.room.tell(text, OPS, self.now_ms))

    # ---- time and releases ------------------------------------------------------------------------

    def release(self, count: int) -> None:
        """Release by hand, in as many slices as it takes."""
        self._release(count, count, OPS, manual=True)

    def tick(self, between: Callable[[], None] | None = None) -> None:
        """Let the pacer look; a batch that is due leaves in as many slices as it takes, with something in between."""
        passthrough = self.model.settings.queueing == "passthrough"
        due = self.model.event.tick(self.now_ms)
        batch = self.room.tick(self.now_ms)
        assert due or passthrough or not batch, "a batch is due too soon"
        assert passthrough or batch <= self.model.settings.batch_size, "more than a batch is due"
        if due or batch:
            most = 10**9 if passthrough else self.model.settings.batch_size
            self._release(batch, most, PACER, manual=False, between=between)

    def _release(
        self, count: int, most: int, by: By, *, manual: bool, between: Callable[[], None] | None = None
    ) -> None:
        """Every slice ends where the model says, and when no more is to come nothing was forgotten.

        `count` is what the room said is due, `most` what the rate or the operator allows.
        """
        moment_ms, let_in = self.now_ms, 0
        for _ in range(100):
            done = self._slice(count, most, by, moment_ms, manual=manual)
            if done is None:
                return
            count, most, let_in = count - done, most - done, let_in + done
            if between is not None:
                between()
                most = min(most, count)
                if not manual and self.model.settings.queueing != "passthrough":
                    most = min(most, max(0, self.model.settings.batch_size - let_in))
        raise AssertionError("slices do not end")

    def _slice(self, count: int, most: int, by: By, now_ms: int, *, manual: bool) -> int | None:
        """Release one slice, at the moment the batch was begun; returns how many, None after the last one."""
        model, first = self.model, len(self.venue.outbox.records)
        try:
            whole = model.copy().release(most, now_ms, manual=manual)
        except No:
            self.both(
                lambda: model.release(most, now_ms, manual=manual),
                lambda: self.room.release(count, by, now_ms, manual=manual),
            )
            return None
        result = self.room.release(count, by, now_ms, manual=manual)
        released, stepped_over = result.released, result.stepped_over
        assert released + stepped_over <= pacing.SLICE, f"a slice walks {released + stepped_over}"
        assert released + stepped_over > 0 or not result.more, "a slice that does nothing says that there is more"
        if not result.more:
            assert (released, stepped_over) == whole, f"{released} released, {stepped_over} parked, not {whole}"
            assert not manual or released == count or result.limited_by in ("line", "capacity")
        walked = model.release(most, now_ms, manual=manual, walk=released + stepped_over)
        assert walked == (released, stepped_over), f"{released} released, {stepped_over} parked, not {walked}"
        self._same_records(first)
        return released if result.more else None

    def _look_at_the_draw(self) -> None:
        """The list of the drawn is published when all are written; until then somebody may still be in the lobby."""
        draw = answering.draw(self.room.ledger)
        if self.model.drawing and (draw is None or draw.entries_sha256 is not None):
            self.model.drawn()

    def expire(self) -> None:
        """Run every clock that is out."""

        def real() -> None:
            for _ in range(1_000):
                if not self.room.expire(self.now_ms, 2):
                    return
            raise AssertionError("expiring does not end")

        self.both(lambda: self.model.expire(self.now_ms), real)

    # ---- log, snapshots, crashes ------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything so far durable."""
        self.venue.drain()
        self.commits.append(Commit(len(self.venue.log), self.model.copy()))

    def capture(self) -> None:
        """Take a snapshot between two commits."""
        self.commit()
        self.finish_draw()
        self.captured = len(self.venue.log), list(self.venue.capture())

    def finish_draw(self) -> None:
        """Let a draw come to its end."""
        self.room.ledger.draw_all()
        self.model.drawn()

    def crash(self, commit: int = -1, *, lost: bool = False) -> None:
        """Kill the process and start it on what was durable, or (`lost`) on less, behind a gap."""
        self.check_replay()
        cut = self.commits[commit]
        log = self.venue.log[: cut.records]
        self.commits = self.commits[: self.commits.index(cut) + 1]
        self.venue = self._rebuilt(log)
        self.model = cut.model.copy()
        self.now_ms = self.venue.outbox.last_ms
        assert self.now_ms == max(record.at_ms for record in log), "the clock goes on from before the newest record"
        self.captured = None
        self.epoch, self.start_ms = self.epoch + 1, self.now_ms
        self.venue.start(self.epoch, self.now_ms, self.wall_ms, "a tail" if lost else None)
        if "e1" in self.venue.rooms:
            self.model.drawn()
            self.model.start(self.now_ms, self.wall_ms, self.epoch, venues.RENUMBER_GAP if lost else 0)
        self.commit()

    def _rebuilt(self, log: Sequence[Record]) -> RecordingVenue:
        """Replay a log; and from a snapshot with the log behind it the same comes out, to go on with."""
        replayed = _replay(RecordingVenue(), log)
        if self.captured is None or self.captured[0] > len(log):
            return replayed
        lsn, parts = self.captured
        loaded = RecordingVenue()
        loaded.load(parts)
        assert facts(_replay(loaded, log[lsn:])) == facts(replayed), "snapshot and log differ from the log"
        loaded.log, loaded.told = list(log), list(replayed.told)
        return loaded

    def check_replay(self) -> None:
        """Replay equals live: another venue built from the records is the same, an unfinished draw included.

        It announces the same, too: only where in between the draw is over is its own affair.
        """
        log = [*self.venue.log, *self.venue.outbox.records]
        live = facts(self.venue)
        for draws in (True, False):
            replayed = _replay(RecordingVenue(), log, draws=draws)
            assert facts(replayed) == live, "replay differs from live"
            assert _announced(replayed) == _announced(self.venue), "replay announces something else"
        self.model.drawn()

    # ---- compare ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare everything that can be seen."""
        self._look_at_the_draw()
        if not self.model.drawing:
            self.venue.check()
        compare(self.room.ledger, self.model, self.now_ms)

    def finish(self) -> None:
        """Judge the whole history from its records alone."""
        self.check_replay()
        self.commit()
        its, fairness = judge(self.venue.log), answering.fairness(self.room.ledger)
        assert (fairness.skipped, fairness.overtaken) == (its.skipped, its.overtaken)
        counts = (fairness.released, fairness.admitted, fairness.peak_inside)
        assert counts == (its.released, its.admitted, its.peak_inside)
        assert answering.stats(self.room.ledger, self.now_ms).completed == its.completed


def _replay(venue: RecordingVenue, log: Sequence[Record], *, draws: bool = True) -> RecordingVenue:
    for record in log:
        venue.apply(record, draws=draws)
    venue.told = venue.outbox.drain().notices
    venue.log = list(log)
    return venue


def _announced(venue: RecordingVenue) -> tuple[list[Notice], list[str]]:
    """Return what was announced in order, and of which events the line was drawn.

    Of whom a draw under way has not reached yet, and who waits already, is its own affair.
    """
    notices = [*venue.told, *venue.outbox.notices]
    drawn = [notice.event_id for notice in notices if isinstance(notice, LineDrawn)]
    return [
        notice._replace(status="waiting") if isinstance(notice, PlacesChanged) and notice.status == "lobby" else notice
        for notice in notices
        if not isinstance(notice, LineDrawn)
    ], sorted(drawn)
