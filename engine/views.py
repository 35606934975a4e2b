"""What an engine answers and announces: places, events, counts, and notices. Values only, no behaviour.

Every engine, embedded or remote, answers in these words; the server turns them into JSON (API.md). What every join and
poll makes is a msgspec Struct, which costs half of a NamedTuple to make and to read.
"""

from typing import NamedTuple, TypeAlias

from msgspec import Struct


class Estimate(Struct, frozen=True, array_like=True, gc=False):
    """A wait in whole seconds with a band, `confidence` 0–1, and a `reason` where the number is special."""

    seconds: int
    low_seconds: int
    high_seconds: int
    confidence: float
    reason: str | None


class Place(Struct, frozen=True, array_like=True, gc=False):
    """One visitor's place as of `version` (the LSN it was computed at).

    `number` is None in the lobby; `position` is 1-based and None unless waiting; `waiting` counts the whole line;
    `estimate` is None unless waiting. `window_ms` is what is left of the claim window or the session and `limit_ms` of
    the most it may be extended to, None where nothing runs; `release` counts how often the place was let in.
    `generation` is that of the holder now; `fresh`: this call made the place; `proven`: the caller holds it.
    """

    event_id: str
    user_id: str
    status: str
    cause: str | None
    arrival: int
    number: int | None
    position: int | None
    waiting: int
    estimate: Estimate | None
    window_ms: int | None
    limit_ms: int | None
    release: int
    generation: int
    joined_ms: int
    message: str | None
    presence_timeout_s: int
    return_to: str | None
    version: int
    fresh: bool
    proven: bool


class Session(NamedTuple):
    """A stay in the booking flow, as the site is told of it.

    `status` is active, or completed while the exit grace lasts. `began_wall_ms` is the Unix time of the redeem,
    `length_ms` and `limit_length_ms` what was promised then; `left_ms` is what is left now.
    """

    event_id: str
    user_id: str
    arrival: int
    number: int
    status: str
    jti: str
    began_wall_ms: int
    length_ms: int
    limit_length_ms: int
    left_ms: int
    limit_left_ms: int
    version: int


class DrawView(NamedTuple):
    """The lobby's draw: `seed` and the value of the beacon are None until the event has opened."""

    draw_id: str
    algorithm: str
    commitment: str
    beacon: str | None
    beacon_value: str | None
    seed: str | None
    count: int | None  # type: ignore[assignment]
    entries_sha256: str | None


class EventView(NamedTuple):
    """One event as the public may see it, plus what the operator sees: `settings` and `created_ms`."""

    event_id: str
    name: str
    state: str
    reason: str | None
    message: str | None
    outcome: str | None
    waiting: int
    released: int
    serving_number: int
    rate_per_minute: float
    settings: dict[str, object]
    draw: DrawView | None
    version: int
    revision: int


class Stats(NamedTuple):
    """Counts of one event; `counts` is by status, `rate_per_minute` that of recent releases."""

    event_id: str
    state: str
    counts: dict[str, int]
    arrivals: int
    released_automatic: int
    released_manual: int
    completed: int
    rate_per_minute: float
    average_wait_s: float
    next_release_in_ms: int | None
    inside: int
    admissions_left: int | None
    version: int


class Fairness(NamedTuple):
    """How fair the line has been, counted from the same records that made it.

    `overtaken` counts automatic releases that came after a later number of the same level had been let in, by the
    reason that explains each ("returned", "readmitted"; "unexplained" must stay 0: that is an inversion).
    `skipped` counts turns not taken, by reason; `overshoot` is the most a release ever took the cap over (0 by rule).
    """

    event_id: str
    released: int
    admitted: int
    inversions: int
    overshoot: int
    peak_inside: int
    overtaken: dict[str, int]
    skipped: dict[str, int]
    version: int


class ReleaseResult(NamedTuple):
    """What a release did; `limited_by` names what kept it below what was asked: line, capacity, or None.

    `more` says that only a slice of it is done, and that asking again for the rest may find more.
    """

    released: int
    stepped_over: int
    limited_by: str | None
    more: bool
    version: int


class Ranking(NamedTuple):
    """Positions and estimated waits (seconds) of several visitors as of one version; position 0: not waiting."""

    positions: list[int]
    waits: list[int]
    version: int


class PlacesChanged(NamedTuple):
    """These arrivals (or the line behind them) are no longer what they were: `status` is the new one."""

    event_id: str
    arrivals: tuple[int, ...]
    status: str
    version: int


class LineDrawn(NamedTuple):
    """The lobby was drawn: everybody in it has a number and stands in line now."""

    event_id: str
    version: int


class EventChanged(NamedTuple):
    """The event's state, reason or message changed."""

    event_id: str
    version: int


class EventGone(NamedTuple):
    """The event was deleted with everybody's place in it."""

    event_id: str
    version: int


class BackendChanged(NamedTuple):
    """Another process decides from now on, or this state was built anew: whatever was known of any event may be old."""

    version: int


Notice: TypeAlias = PlacesChanged | LineDrawn | EventChanged | EventGone | BackendChanged
