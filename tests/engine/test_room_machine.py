"""Any history at all: the room against a model made of plain lists, with restarts at any commit.

After every step the room's own invariants hold, every position is the model's, the cap and the rate are kept,
releases take the head, one identity holds one live place, and a venue built by replay, or loaded from a
capture and then replayed, is the same.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.actor import By
from engine.errors import Refused
from engine.records import Record, Released
from engine.venue import Venue
from tests.engine.rooms import OPERATOR, WHY, RecordingVenue, facts, make_room

USERS = [f"u{index}" for index in range(7)]
BATCH, INTERVAL_S, CAP, FULL = 2, 10, 3, 6
LIVE = ("waiting", "ready")


@dataclass
class Model:
    """What a room is, in lists: one [user_id, status] an arrival, in order, and the state of the event."""

    rows: list[list[str]] = field(default_factory=list)
    state: str = "draft"

    def line(self) -> list[int]:
        return [arrival for arrival, (_, status) in enumerate(self.rows, 1) if status == "waiting"]

    def inside(self) -> int:
        return sum(status == "ready" for _, status in self.rows)

    def newest(self, user_id: str) -> int:
        return max((arrival for arrival, (who, _) in enumerate(self.rows, 1) if who == user_id), default=0)


class RoomMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.venue = RecordingVenue()
        knobs = {"batch_size": BATCH, "batch_interval_s": INTERVAL_S, "max_active": CAP, "max_waiting": FULL}
        self.room = make_room(self.venue, knobs)
        self.model = Model()
        self.now_ms = 0
        self.epoch = 1
        self.captured: tuple[int, list[object]] | None = None

    @initialize(opened=st.sampled_from([True, True, True, False]))
    def the_event_is_mostly_open_from_the_start(self, opened: bool) -> None:
        if opened:
            self.room.control("open", OPERATOR, self.now_ms)
            self.model.state = "open"

    @rule()
    def a_crowd_joins(self) -> None:
        for user_id in USERS:
            self.somebody_joins(user_id, 0)

    @rule(ms=st.integers(1, 30_000) | st.sampled_from([INTERVAL_S * 1000 - 1, INTERVAL_S * 1000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule(user_id=st.sampled_from(USERS), proof=st.integers(0, 2))
    def somebody_joins(self, user_id: str, proof: int) -> None:
        model = self.model
        held = model.newest(user_id)
        live = held and model.rows[held - 1][1] in LIVE
        try:
            place = self.room.join(user_id, proof, self.now_ms)
        except Refused as refused:
            expected = {"draft": "not_open", "closed": "closed"}.get(model.state, "queue_full")
            assert not live and refused.code == expected
            assert expected != "queue_full" or len(model.line()) >= FULL
            return
        assert place.fresh == (not live)
        if place.fresh:
            model.rows.append([user_id, "waiting"])
            assert place.number == place.arrival == len(model.rows)
        else:
            assert place.arrival == held

    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        if self.model.rows:
            arrival = data.draw(st.integers(1, len(self.model.rows)))
            row = self.model.rows[arrival - 1]
            self.room.leave(arrival, row[0], self.now_ms)
            if row[1] in LIVE:
                row[1] = "left"

    @rule(user_id=st.sampled_from(USERS), outcome=st.sampled_from(["completed", "abandoned"]))
    def the_site_completes_somebody(self, user_id: str, outcome: str) -> None:
        arrival = self.model.newest(user_id)
        status = self.model.rows[arrival - 1][1] if arrival else None
        try:
            self.room.complete(user_id, outcome, "site", self.now_ms)
        except Refused:
            assert status not in ("ready", "completed")
        else:
            assert status in ("ready", "completed")
            self.model.rows[arrival - 1][1] = "completed"

    @rule(action=st.sampled_from(["open", "resume", "open", "resume", "pause", "close"]))
    def an_operator_acts(self, action: str) -> None:
        after = {
            "open": {"draft": "open", "open": "open", "closed": "open"},
            "pause": {"open": "paused", "paused": "paused"},
            "resume": {"open": "open", "paused": "open"},
            "close": dict.fromkeys(("draft", "open", "paused", "closed"), "closed"),
        }[action].get(self.model.state)
        try:
            self.room.control(action, WHY, self.now_ms)
        except Refused as refused:
            assert refused.code == "conflict" and after is None
        else:
            assert after is not None
            self.model.state = after

    @rule(count=st.integers(1, 7))
    def an_operator_releases(self, count: int) -> None:
        try:
            result = self.room.release(count, OPERATOR, self.now_ms, manual=True)
        except Refused:
            assert self.model.state in ("draft", "closed")
        else:
            self._take(result.released, min(count, len(self.model.line()), CAP - self.model.inside()))

    @rule()
    def the_pacer_ticks(self) -> None:
        due = self.room.tick(self.now_ms)
        assert due <= BATCH
        if due:
            assert self.model.state == "open"
            result = self.room.release(due, By("pacer"), self.now_ms, manual=False)
            self._take(result.released, min(BATCH, len(self.model.line()), CAP - self.model.inside()))

    def _take(self, released: int, expected: int) -> None:
        assert released == expected
        for arrival in self.model.line()[:released]:
            self.model.rows[arrival - 1][1] = "ready"

    @rule()
    def a_snapshot_is_taken(self) -> None:
        self.venue.drain()
        self.captured = len(self.venue.log), list(self.venue.capture())

    @precondition(lambda self: self.model.rows)
    @rule()
    def the_process_is_killed_and_starts_again(self) -> None:
        """Everything drained is durable; what is rebuilt from it must be the same."""
        self.venue.drain()
        log = self.venue.log
        replayed = _replay(RecordingVenue(), log)
        if self.captured is not None:
            lsn, parts = self.captured
            loaded = RecordingVenue()
            loaded.load(parts)
            assert facts(_replay(loaded, log[lsn:])) == facts(replayed)
        assert facts(replayed) == facts(self.venue)
        replayed.log = log
        self.venue, self.room = replayed, replayed.room("e1")
        self.epoch += 1
        self.venue.start(self.epoch, self.now_ms, 0)

    @invariant()
    def the_room_is_what_the_model_says(self) -> None:
        room, model = self.room, self.model
        room.check()
        line = model.line()
        assert room.state == model.state
        assert len(room.line) == len(line)
        for arrival, (user_id, status) in enumerate(model.rows, 1):
            place = room.place(arrival)
            shown = "closed" if model.state == "closed" and status == "waiting" else status
            assert (place.user_id, place.status) == (user_id, shown)
            assert place.position == (line.index(arrival) + 1 if status == "waiting" else None)
        live = [user_id for user_id, status in model.rows if status in LIVE]
        assert len(live) == len(set(live)), "one identity holds two places"
        assert model.inside() <= CAP

    def teardown(self) -> None:
        self.venue.drain()
        _check_rate([record for record in self.venue.log if isinstance(record, Released) and not record.manual])


def _check_rate(releases: list[Released]) -> None:
    for first in releases:
        window = [r for r in releases if first.at_ms <= r.at_ms < first.at_ms + INTERVAL_S * 1000]
        assert sum(len(r.numbers) for r in window) <= BATCH, "more than a batch within one interval"


def _replay(venue: RecordingVenue, log: list[Record]) -> RecordingVenue:
    for record in log:
        venue.apply(record)
    Venue.drain(venue)
    venue.log = list(log)
    return venue


TestRoomMachine = RoomMachine.TestCase
TestRoomMachine.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
