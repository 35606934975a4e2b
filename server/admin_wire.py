"""Wire types of the admin API, and the settings of an event as a type made from the engine's own table.

`KNOBS` and `Settings` in `engine.settings` are the only place where a setting, its default and its bounds are
written; the types here are generated from them for the OpenAPI document. The engine checks what is sent, so
that one 422 names everything that is wrong at once.
"""

from dataclasses import fields
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from engine.actor import REASON_LENGTH
from engine.records import KINDS
from engine.register import STATUSES
from engine.settings import KNOBS, MAX_MS, Knob, Settings
from engine.timeline import OMITTED, PRUNED
from server.wire import Status, UserId

SETTINGS_BODY_LIMIT = 64 * 1024
NOTE_LENGTH = 1000
TEXT_LENGTH = 1000
RELEASE_LIMIT = 1_000_000
BEACON_NAME_LENGTH = 200
BEACON_LENGTH = 1000
VISITORS_LIMIT = 1000
LINE_OF_TEXT = "^[^\\x00-\\x1f\\x7f]*$"
TEXT = "^[^\\x00-\\x09\\x0b-\\x1f\\x7f]*$"

Reason: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=REASON_LENGTH, pattern=LINE_OF_TEXT, description="why; visitors may read it")
]
Note: TypeAlias = Annotated[str, Meta(max_length=NOTE_LENGTH, pattern=TEXT, description="for the audit only")]
EventState: TypeAlias = Literal["draft", "lobby", "open", "paused", "closed"]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Ordinal: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_MS)]


def _plain_type(knob: Knob) -> Any:
    """Return the type of a setting, with its bounds."""
    match knob.kind:
        case "int":
            return Annotated[int, Meta(ge=knob.low, le=knob.high)]
        case "bool":
            return bool
        case "choice":
            return Literal[knob.choices]
        case "origins":
            origin = Meta(pattern="^https?://", description="an origin, such as https://shop.example")
            return Annotated[list[Annotated[str, origin]], Meta(max_length=knob.high)]
        case "map":
            return Annotated[dict[str, Any], Meta(max_length=knob.high)]
        case "text":
            return Annotated[str, Meta(min_length=knob.low, max_length=knob.high, pattern=LINE_OF_TEXT)]
    raise AssertionError(f"a setting of kind {knob.kind!r} has no type on the wire")


def _settings_fields() -> list[tuple[str, Any, Any]]:
    """Return (name, type, default) of every setting; each may be left out."""
    described = []
    for setting in fields(Settings):
        knob = KNOBS[setting.name]
        plain = _plain_type(knob)
        default = Settings().as_map()[setting.name]
        if isinstance(default, list | dict):
            default = msgspec.field(default_factory=type(default))
        described.append((setting.name, plain | None if knob.nullable else plain, default))
    return described


_ABOUT_SETTINGS = "The settings of an event; the defaults apply where one was never set."
_ABOUT_CHANGE = "Settings to store, with why: `reason` and `note` are not settings and are not stored among them."

SettingsView: type[Struct] = msgspec.defstruct(
    "Settings", _settings_fields(), kw_only=True, namespace={"__doc__": _ABOUT_SETTINGS}
)
SettingsChange: type[Struct] = msgspec.defstruct(
    "SettingsChange",
    [*_settings_fields(), ("reason", Reason | None, None), ("note", Note | None, None)],
    kw_only=True,
    forbid_unknown_fields=True,
    namespace={"__doc__": _ABOUT_CHANGE},
)


class Why(Struct, forbid_unknown_fields=True):
    """The two reserved members of a settings body."""

    reason: Reason | None = None
    note: Note | None = None


class LobbyRequest(Struct, forbid_unknown_fields=True):
    """`beacon` names a public value that nobody can know yet, and that is mixed into the draw when the event opens."""

    beacon: Annotated[str, Meta(min_length=1, max_length=BEACON_NAME_LENGTH, pattern=LINE_OF_TEXT)] | None = None
    note: Note | None = None


class OpenRequest(Struct, forbid_unknown_fields=True):
    """`beacon` is the value of the beacon that was named when the lobby opened; required there, and there alone."""

    beacon: Annotated[str, Meta(min_length=1, max_length=BEACON_LENGTH, pattern=LINE_OF_TEXT)] | None = None
    note: Note | None = None


class ResumeRequest(Struct, forbid_unknown_fields=True):
    """Going on needs no reason."""

    note: Note | None = None


class PauseRequest(Struct, forbid_unknown_fields=True):
    """Visitors are told why."""

    reason: Reason
    note: Note | None = None


class CloseRequest(Struct, forbid_unknown_fields=True):
    """Visitors are told why, and how it ended: `outcome` is a word or a sentence, such as "sold_out"."""

    reason: Reason
    outcome: Annotated[str, Meta(min_length=1, max_length=REASON_LENGTH, pattern=LINE_OF_TEXT)] | None = None
    note: Note | None = None


class ReleaseRequest(Struct, forbid_unknown_fields=True):
    """How many to release now, outside the rate and inside the cap."""

    count: Annotated[int, Meta(ge=1, le=RELEASE_LIMIT)]
    reason: Reason | None = None
    note: Note | None = None


class MessageRequest(Struct, forbid_unknown_fields=True):
    """What everybody in line is told; an empty text takes the message away."""

    text: Annotated[str, Meta(max_length=TEXT_LENGTH, pattern=TEXT)]
    note: Note | None = None


class AdmitRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whom to let in ahead of the others (exactly one of the three), and why."""

    user_id: UserId | None = None
    number: Ordinal | None = None
    arrival: Ordinal | None = None
    reason: Reason
    note: Note | None = None


class RemoveRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Whose place to take away (exactly one of the three), and why; with `ban` they may not join this event again."""

    user_id: UserId | None = None
    number: Ordinal | None = None
    arrival: Ordinal | None = None
    reason: Reason
    note: Note | None = None
    ban: bool = False


class SnapshotRequest(Struct, forbid_unknown_fields=True):
    """A snapshot needs nothing said."""


class DeleteQuery(Struct, forbid_unknown_fields=True):
    """What the audit should say of a deletion."""

    note: Note | UnsetType = UNSET


class RecordsQuery(Struct, forbid_unknown_fields=True, rename={"from_lsn": "from", "to_lsn": "to"}):
    """The first and the last LSN; the newest durable one when `to` is left out or lies ahead."""

    from_lsn: Annotated[int, Meta(ge=1, le=MAX_MS)] = 1
    to_lsn: Annotated[int, Meta(ge=1, le=MAX_MS)] | UnsetType = UNSET


class VisitorsQuery(Struct, forbid_unknown_fields=True):
    """Either one visitor (by exactly one of user_id, number and arrival), or a list in the order of joining.

    Of a list, `status` asks for one status alone (as stored: those of a closed event keep theirs), and `after` for
    those who came after an arrival.
    """

    user_id: UserId | UnsetType = UNSET
    number: Ordinal | UnsetType = UNSET
    arrival: Ordinal | UnsetType = UNSET
    status: Literal[STATUSES[1:]] | UnsetType = UNSET  # type: ignore[valid-type]
    limit: Annotated[int, Meta(ge=1, le=VISITORS_LIMIT)] = 100
    after: Annotated[int, Meta(ge=0, le=MAX_MS)] = 0


class AdminDraw(Struct):
    """The lobby's draw; `seed` and `beacon_value` are null until the event has opened."""

    draw_id: str
    algorithm: str
    commitment: str
    beacon: str | None
    beacon_value: str | None
    seed: str | None
    count: Count | None
    entries_sha256: str | None


class AdminEvent(Struct):
    """An event as its operators see it. `revision` counts changes of settings, `version` is the LSN of the answer."""

    event_id: str
    name: str
    state: EventState
    reason: str | None
    message: str | None
    outcome: str | None
    waiting: Count
    released: Count
    serving_number: Count
    rate_per_minute: float
    settings: SettingsView  # type: ignore[valid-type]
    draw: AdminDraw | None
    version: Count
    revision: Count


class AdminEvents(Struct):
    """All events, by id."""

    events: list[AdminEvent]


class ReleaseAnswer(Struct):
    """What a release did; `limited_by` names what kept it below what was asked: line, capacity, or null."""

    released: Count
    stepped_over: Count
    limited_by: Literal["line", "capacity", "rate"] | None
    version: Count


class StatsAnswer(Struct):
    """Counts of one event, `counts` by status; `next_release_in_ms` is null while no batch will come."""

    event_id: str
    state: EventState
    counts: dict[str, Count]
    arrivals: Count
    released_automatic: Count
    released_manual: Count
    completed: Count
    rate_per_minute: float
    average_wait_s: float
    next_release_in_ms: int | None
    inside: Count
    admissions_left: Count | None
    version: Count


class AdminPlace(Struct):
    """One visitor's place as operators see it.

    `window_ms` is what is left of whatever runs (the time a parked place is kept, the claim window, the session),
    `limit_ms` of the most it may be extended to; `release` counts how often the place was let in, and `generation` how
    often it moved to another holder. `joined_ms` is by the clock of the records.
    """

    event_id: str
    user_id: str
    status: Status
    cause: str | None
    arrival: Count
    number: Count | None
    position: Count | None
    window_ms: Count | None
    limit_ms: Count | None
    release: Count
    generation: Count
    joined_ms: Count
    version: Count


class PlaceAnswer(Struct):
    """The place after what was done to it."""

    place: AdminPlace


class TimelineEntry(Struct):
    """One thing that happened, in words.

    `kind` is that of the record, or "pruned" and "omitted" where something cannot be told. `at_ms` is by the clock of
    the records, which stands still while no server runs, and `wall_ms` by the clock on the wall, null where unknown.
    """

    lsn: Count
    at_ms: Count
    wall_ms: int | None
    kind: Literal[(*KINDS, PRUNED, OMITTED)]  # type: ignore[valid-type]
    text: str
    actor: str | None
    reason: str | None


class VisitorAnswer(Struct):
    """One visitor: the place, and everything that happened to it."""

    place: AdminPlace
    timeline: list[TimelineEntry]


class VisitorsAnswer(Struct):
    """Places in the order of joining; `next` is the `after` of the next page, null at the end."""

    visitors: list[AdminPlace]
    next: Count | None


class FairnessAnswer(Struct):
    """How fair the line has been, counted from the records that made it.

    `inversions` must be 0: how many were let in by the rate although a later number of their level had gone before,
    with nothing to explain it. `overtaken` are those with an explanation: they came back after being stepped over
    ("returned"), or out of a lost part of the log ("readmitted"). `overshoot` must be 0: the most that a release took
    the number inside above the cap. `skipped` counts turns not taken, by reason; `admitted` who was let in ahead.
    """

    event_id: str
    released: Count
    admitted: Count
    inversions: Count
    overshoot: Count
    peak_inside: Count
    overtaken: dict[str, Count]
    skipped: dict[str, Count]
    version: Count


class RecordLine(Struct):
    """One line of the export: the LSN, the kind, and beside them the fields of that kind."""

    lsn: Count
    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]
    at_ms: Count
    event_id: str | UnsetType = UNSET


class StatusAnswer(Struct):
    """How the server fares.

    `warnings` say what is set weaker than the safe defaults; `details` are the numbers of log and snapshots by name.
    """

    name: str
    role: Literal["primary", "follower", "none"]
    epoch: Count
    version: Count
    durable_version: Count
    degraded: list[str]
    refuses_joins: str | None
    warnings: list[str]
    details: dict[str, Any]


class SnapshotAnswer(Struct):
    """What was written: the numbers of log and snapshots right after."""

    details: dict[str, Any]
