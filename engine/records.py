"""Records: the durable facts, one line each. Whoever applies them in order holds the same state.

A record carries everything needed to apply it again, and nothing that would have to be decided again.
On the wire (log frames, exports, replication) a record is an array `[kind, version, *fields]`, kind being
the class name in lower case, so that a log can be read with any msgpack tool. A reader that meets a kind
or a version it does not know refuses, naming both: skipping a fact would be a silent change of state.

`at_ms` is event time (DESIGN.md, "Time"): last recorded time plus monotonic time since start.
`actor` names who did it: "visitor", "site", "pacer", "schedule", or the name of an admin key.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from engine.errors import Damaged

SettingsMap: TypeAlias = Mapping[str, object]


class Started(NamedTuple):
    """A process took up the log: a new epoch begins. `wall_ms` is Unix time, for display only.

    Where history may have been lost (a restored backup, a loss an operator accepted), `lost` says what, for the
    audit, and every event's next number leaves a gap of `gap`, so that lost numbers stay with their holders.
    """

    at_ms: int
    epoch: int
    wall_ms: int
    gap: int
    lost: str | None


class Checkpoint(NamedTuple):
    """The running digest of all rooms here: replay recomputes it, so a bit flip or a divergence shows."""

    at_ms: int
    digest: int


class Configured(NamedTuple):
    """All settings of an event as they now are; the first one creates the event as a draft."""

    event_id: str
    at_ms: int
    settings: SettingsMap
    actor: str
    reason: str | None
    note: str | None


class LobbyOpened(NamedTuple):
    """The lobby opened and its draw is bound: `commitment` is that of a seed which stands nowhere yet.

    `draw_id` is never used twice, `beacon` the name of a public value that will be mixed in.
    """

    event_id: str
    at_ms: int
    draw_id: str
    commitment: str
    beacon: str | None
    actor: str
    note: str | None


class Opened(NamedTuple):
    """The event opened. `seed`, `beacon` (its value) and `count` are those of the lobby's draw; "", None, 0 without."""

    event_id: str
    at_ms: int
    seed: str
    beacon: str | None
    count: int  # type: ignore[assignment]
    actor: str
    note: str | None


class Paused(NamedTuple):
    event_id: str
    at_ms: int
    actor: str
    reason: str
    note: str | None


class Resumed(NamedTuple):
    event_id: str
    at_ms: int
    actor: str
    note: str | None


class Closed(NamedTuple):
    event_id: str
    at_ms: int
    actor: str
    reason: str
    outcome: str | None
    note: str | None


class Reopened(NamedTuple):
    event_id: str
    at_ms: int
    actor: str
    note: str | None


class Deleted(NamedTuple):
    event_id: str
    at_ms: int
    actor: str
    note: str | None


class Messaged(NamedTuple):
    """What the operator tells everyone in line (an empty text takes it away); `reason` is the new one of a pause."""

    event_id: str
    at_ms: int
    text: str
    reason: str | None
    actor: str
    note: str | None


class Joined(NamedTuple):
    """A visitor took a place. `key` is the order key, `proof` a 64-bit digest of what proves holding it (0: none).

    `size` is how many the place counts under the cap; `level` its priority; `signed` says that `proof` is that of an
    enqueue token, which is spent with it.
    """

    event_id: str
    at_ms: int
    arrival: int
    key: int
    user_id: str
    proof: int
    level: int
    size: int
    signed: bool


class Readmitted(NamedTuple):
    """A place out of a lost tail of the log, taken up again on the word of its token."""

    event_id: str
    at_ms: int
    arrival: int
    key: int
    user_id: str
    generation: int


class Parked(NamedTuple):
    """Stepped over while absent: out of the line, to come back at its own place. `last_seen_ms` go with `numbers`."""

    event_id: str
    at_ms: int
    numbers: Sequence[int]
    last_seen_ms: Sequence[int]


class Returned(NamedTuple):
    """Somebody parked was heard of and stands at their own place again."""

    event_id: str
    at_ms: int
    arrival: int


class Released(NamedTuple):
    """The head of the line became ready, until `until_ms`. `numbers` are in line order.

    `request` is the Idempotency-Key of a release by hand, so that repeating it never releases more.
    """

    event_id: str
    at_ms: int
    numbers: Sequence[int]
    until_ms: int
    manual: bool
    actor: str
    reason: str | None
    request: str | None


class Admitted(NamedTuple):
    """An operator let one visitor in ahead of the others, until `until_ms`."""

    event_id: str
    at_ms: int
    arrival: int
    until_ms: int
    actor: str
    reason: str
    note: str | None


class Lapsed(NamedTuple):
    """A first turn went by unclaimed: parked, for one more."""

    event_id: str
    at_ms: int
    arrival: int


class Redeemed(NamedTuple):
    """A pass was redeemed and a session began, until `until_ms`, never beyond `limit_ms`.

    `request` is the Idempotency-Key and `wall_ms` Unix time, so that repeating it is answered the same; `assumed` says
    that nobody showed the pass here (redemption=offline).
    """

    event_id: str
    at_ms: int
    arrival: int
    jti: str
    request: str | None
    wall_ms: int
    until_ms: int
    limit_ms: int
    assumed: bool
    actor: str


class Extended(NamedTuple):
    """More time, until `until_ms`: for the claim window or for the session, whichever runs."""

    event_id: str
    at_ms: int
    arrival: int
    until_ms: int
    actor: str


class Expired(NamedTuple):
    """A place ended by time: `cause` is absent, unclaimed or session."""

    event_id: str
    at_ms: int
    arrival: int
    cause: str


class Left(NamedTuple):
    event_id: str
    at_ms: int
    arrival: int


class Completed(NamedTuple):
    """A released visitor is done; the slot is free. `outcome` is "completed" or "abandoned"; `late`: after the end."""

    event_id: str
    at_ms: int
    arrival: int
    outcome: str
    late: bool
    actor: str


class Removed(NamedTuple):
    """An operator took a place away."""

    event_id: str
    at_ms: int
    arrival: int
    actor: str
    reason: str
    note: str | None


class Banned(NamedTuple):
    """An identity may not join this event any more."""

    event_id: str
    at_ms: int
    user_id: str
    actor: str
    reason: str
    note: str | None


class Transferred(NamedTuple):
    """A place went to another holder: tokens of a lower `generation` only read from now on; `proof` as in Joined."""

    event_id: str
    at_ms: int
    arrival: int
    generation: int
    proof: int
    signed: bool


class Purged(NamedTuple):
    """The time to keep people's places is over: who they were is forgotten."""

    event_id: str
    at_ms: int


Record: TypeAlias = (
    Started
    | Checkpoint
    | Configured
    | LobbyOpened
    | Opened
    | Paused
    | Resumed
    | Closed
    | Reopened
    | Deleted
    | Messaged
    | Joined
    | Readmitted
    | Parked
    | Returned
    | Released
    | Admitted
    | Lapsed
    | Redeemed
    | Extended
    | Expired
    | Left
    | Completed
    | Removed
    | Banned
    | Transferred
    | Purged
)

KINDS: dict[str, tuple[type[Record], int]] = {
    "started": (Started, 1),
    "checkpoint": (Checkpoint, 1),
    "configured": (Configured, 1),
    "lobbyopened": (LobbyOpened, 1),
    "opened": (Opened, 1),
    "paused": (Paused, 1),
    "resumed": (Resumed, 1),
    "closed": (Closed, 1),
    "reopened": (Reopened, 1),
    "deleted": (Deleted, 1),
    "messaged": (Messaged, 1),
    "joined": (Joined, 1),
    "readmitted": (Readmitted, 1),
    "parked": (Parked, 1),
    "returned": (Returned, 1),
    "released": (Released, 1),
    "admitted": (Admitted, 1),
    "lapsed": (Lapsed, 1),
    "redeemed": (Redeemed, 1),
    "extended": (Extended, 1),
    "expired": (Expired, 1),
    "left": (Left, 1),
    "completed": (Completed, 1),
    "removed": (Removed, 1),
    "banned": (Banned, 1),
    "transferred": (Transferred, 1),
    "purged": (Purged, 1),
}

_HEAD_OF_CLASS: dict[type[Record], tuple[str, int]] = {cls: (kind, version) for kind, (cls, version) in KINDS.items()}


def kind_of(record: Record) -> str:
    """Return the record's kind as it stands on the wire."""
    return _HEAD_OF_CLASS[type(record)][0]


def encode(record: Record) -> tuple[object, ...]:
    """Return the array form `(kind, version, *fields)`; O(fields)."""
    return _HEAD_OF_CLASS[type(record)] + record


def decode(array: Sequence[object]) -> Record:
    """Return the record an array stands for; raises Damaged for anything this version does not know."""
    if not isinstance(array, list | tuple) or len(array) < 2:
        raise Damaged(f"a record must be an array [kind, version, ...], not {str(array)[:80]!r}")
    kind, version = array[0], array[1]
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is None or known[1] != version:
        raise Damaged(f"record kind {kind!r} version {version!r} is unknown to this version of Stanchion")
    cls = known[0]
    if len(array) - 2 != len(cls._fields):
        raise Damaged(f"a {kind!r} record has {len(array) - 2} fields where {len(cls._fields)} are due")
    return cls._make(array[2:])
