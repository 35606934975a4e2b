"""What can be seen of a room, compared with its model: places, sessions, the event, its counts and its draw."""

from hashlib import sha256
from struct import pack

from engine import answering
from engine.ledger import Ledger
from engine.views import Place
from tests.engine.room_model import LIVE, RoomModel, Row

SHOWN_AS_CLOSED = ("lobby", "waiting", "parked")
ENDED = ("completed", "expired", "left", "removed")


def compare(ledger: Ledger, model: RoomModel, now_ms: int) -> None:
    """Compare everything; raises AssertionError at the first difference."""
    for row in model.rows:
        compare_place(ledger, model, now_ms, row)
        _compare_session(ledger, model, now_ms, row)
    _compare_event(ledger, model, now_ms)
    _compare_draw(ledger, model)
    live = [row.user_id for row in model.rows if row.status in LIVE]
    assert len(live) == len(set(live)), "one identity holds two places"
    fairness = answering.fairness(ledger)
    assert (fairness.inversions, fairness.overshoot) == (0, 0), fairness


def compare_place(ledger: Ledger, model: RoomModel, now_ms: int, row: Row, place: Place | None = None) -> None:
    """Compare one place, as it stands or as it was answered.

    While a draw is being written somebody may still be in the lobby who has a number in the model already.
    """
    place = place or answering.place(ledger, row.arrival, now_ms)
    drawing = model.drawing and row.drawn_late
    status, number = row.status, row.number
    if drawing and place.status in ("lobby", "closed") and place.number is None:
        status, number = "lobby", None
    shown = "closed" if model.event.state == "closed" and status in SHOWN_AS_CLOSED else status
    assert (place.user_id, place.arrival) == (row.user_id, row.arrival)
    assert (place.status, place.cause) == (shown, row.cause), f"{place.status} {place.cause}, not {shown}: {row}"
    assert place.number == number or (drawing and place.number is None), f"number {place.number}, not {row}"
    position = [its.arrival for its in model.line()].index(row.arrival) + 1 if status == "waiting" else None
    exact = not model.drawing or not any(its.level for its in model.rows)
    assert not exact or place.position == position, f"position {place.position}, not {position}: {row}"
    assert (place.generation, place.release, place.joined_ms) == (row.generation, row.releases, row.joined_ms)
    event_ms = model.event.time_ms(now_ms)
    runs, may_be_extended = status in ("parked", "ready", "active"), status in ("ready", "active")
    left_ms = max(0, row.until_ms - event_ms) if runs else None
    limit_ms = max(0, row.limit_ms - event_ms) if may_be_extended else None
    assert (place.window_ms, place.limit_ms) == (left_ms, limit_ms), f"{place}, not {left_ms}, {limit_ms}: {row}"


def _compare_session(ledger: Ledger, model: RoomModel, now_ms: int, row: Row) -> None:
    session = answering.session(ledger, row.arrival, now_ms)
    seen = None if session is None else (session.status, session.left_ms, session.limit_left_ms)
    assert seen == model.session(row, now_ms), f"session {seen} of {row}"
    assert session is None or (session.user_id, session.number) == (row.user_id, row.number)


def _compare_event(ledger: Ledger, model: RoomModel, now_ms: int) -> None:
    view, stats, event = answering.view(ledger), answering.stats(ledger, now_ms), model.event
    assert (view.state, view.reason, view.outcome) == (event.state, event.reason, event.outcome)
    assert (view.message, view.settings) == (event.message, event.settings.as_map())
    assert stats.inside == model.inside(), f"{stats.inside} inside, not {model.inside()}"
    assert (stats.released_automatic, stats.released_manual) == tuple(model.released)
    assert view.serving_number == model.serving_number
    if model.settings.queueing != "passthrough":
        assert answering.next_release_ms(ledger, now_ms) == event.next_release_ms(now_ms)
    _compare_lists(ledger, model, now_ms)
    if not model.drawing:
        _compare_ranks(ledger, model)
        assert view.waiting == len(model.line())
        for status in (*LIVE, *ENDED):
            assert stats.counts[status] == sum(row.status == status for row in model.rows), status


def _compare_ranks(ledger: Ledger, model: RoomModel) -> None:
    """Whoever is pushed positions gets the same: of those who wait, and of some who do not in between."""
    line = [row.arrival for row in model.line()]
    everybody = [row.arrival for row in sorted(model.rows, key=lambda row: row.key) if row.number]
    for arrivals in (line, everybody):
        expected = [line.index(arrival) + 1 if arrival in line else 0 for arrival in arrivals]
        assert answering.ranks(ledger, arrivals).positions == expected


def _compare_lists(ledger: Ledger, model: RoomModel, now_ms: int) -> None:
    """What an operator is listed is by arrival, of one status or of all."""
    rows = sorted(model.rows, key=lambda row: row.arrival)
    listed = [place.arrival for place in answering.visitors(ledger, None, 0, 1_000, now_ms)]
    assert listed == [row.arrival for row in rows]
    for status in ("parked", "ready", "active", "left"):
        for after in (0, rows[0].arrival if rows else 1):
            listed = [place.arrival for place in answering.visitors(ledger, status, after, 2, now_ms)]
            assert listed == [row.arrival for row in rows if row.status == status and row.arrival > after][:2]


def _compare_draw(ledger: Ledger, model: RoomModel) -> None:
    """The commitment is public from the lobby on, the secret from the opening on, the list once all are written."""
    view, event = answering.draw(ledger), model.event
    if view is None or not event.secret:
        assert view is None and not event.secret
        return
    assert (view.commitment, view.beacon) == (sha256(event.secret).hexdigest(), event.beacon)
    drawn = event.drawn
    seed, count = (None, None) if drawn is None else (event.secret.hex(), len(drawn))
    assert (view.seed, view.beacon_value, view.count) == (seed, event.value, count)
    listed = None if drawn is None or model.drawing else sha256(pack(f">{len(drawn)}Q", *drawn)).hexdigest()
    assert view.entries_sha256 == listed
    entries = answering.draw_entries(ledger, 0, 1_000) if listed is not None else []
    assert [number for _, number in entries] == list(range(1, len(entries) + 1))
    assert listed is None or tuple(sorted(arrival for arrival, _ in entries)) == drawn
