"""What may happen: the reference tables of events and visitors, as data (docs/states.md shows them to people).

EVENT_ACTIONS says for each action of an operator (or of the pacer and the schedule) and each state of the event, and
VISITOR_INPUTS for each thing that may happen to a visitor and each status, what follows: the record to write,
"=" for nothing to do, "seen" for presence without a record, or "! code reason" for a refusal. `engine.room` builds the
records these tables name and decides nothing that stands here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

STATES = ("draft", "lobby", "open", "paused", "closed")

EVENT_ACTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lobby": {
            "draft": "lobbyopened",
            "lobby": "=",
            "open": "! conflict open",
            "paused": "! conflict paused",
            "closed": "! conflict closed",
        },
        "open": {
            "draft": "opened",
            "lobby": "opened",
            "open": "=",
            "paused": "! conflict paused",
            "closed": "reopened",
        },
        "pause": {
            "draft": "! conflict not_open",
            "lobby": "held",
            "open": "paused",
            "paused": "messaged",
            "closed": "! conflict closed",
        },
        "resume": {
            "draft": "! conflict not_open",
            "lobby": "! conflict not_open",
            "open": "=",
            "paused": "resumed",
            "closed": "! conflict closed",
        },
        "close": {"draft": "closed", "lobby": "closed", "open": "closed", "paused": "closed", "closed": "="},
        "release": {
            "draft": "! conflict not_open",
            "lobby": "! conflict not_open",
            "open": "released",
            "paused": "released",
            "closed": "! conflict closed",
        },
        "admit": {
            "draft": "! not_open draft",
            "lobby": "! not_open lobby",
            "open": "admitted",
            "paused": "admitted",
            "closed": "! conflict closed",
        },
        "tick": {"draft": "=", "lobby": "=", "open": "released", "paused": "=", "closed": "="},
        "windows": {"draft": "=", "lobby": "=", "open": "all", "paused": "=", "closed": "inside"},
        "delete": {
            "draft": "deleted",
            "lobby": "! conflict lobby",
            "open": "! conflict open",
            "paused": "! conflict paused",
            "closed": "deleted",
        },
    }
)

_LIVE = ("lobby", "waiting", "parked", "ready", "active")
_ENDED = ("completed", "expired", "left", "removed")


def _row(default: str = "", **cells: str) -> dict[str, str]:
    """Return one row: cells by status, the others at the default."""
    return {status: cells.get(status, default) for status in (*_LIVE, *_ENDED)}


# What asking for more time meets outside claim window and session.
_NOTHING_RUNS = _row(
    "! not_active ended",
    lobby="! not_active lobby",
    waiting="! not_active waiting",
    parked="! not_active parked",
    expired="! gone expired",
)

VISITOR_INPUTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "join": {"none": "joined"} | _row("=", **dict.fromkeys(_ENDED, "joined")),
        "touch": _row("=", lobby="seen", waiting="seen", parked="returned", ready="seen"),
        "touch_hidden": _row("=", lobby="seen", waiting="seen", parked="seen", ready="seen"),
        "reached_present": {"waiting": "released"},
        "reached_absent": {"waiting": "parked"},
        "grace_over": {"parked": "expired absent"},
        "claim_over_first": {"ready": "lapsed"},
        "claim_over_again": {"ready": "expired unclaimed"},
        "claim_over_offline": {"ready": "redeemed"},
        "session_over": {"active": "expired session"},
        "redeem": _row(
            "! pass_expired ended",
            waiting="! pass_expired lapsed",
            parked="! pass_expired lapsed",
            ready="redeemed",
            active="repeat",
            completed="! pass_used completed",
        ),
        "extend_claim": _NOTHING_RUNS | {"ready": "extended", "active": "! not_active redeemed"},
        "extend_session": _NOTHING_RUNS | {"ready": "! not_active ready", "active": "extended"},
        "complete": _row(
            "! not_active not_released",
            ready="completed",
            active="completed",
            completed="=",
            expired="late",
            left="! not_active ended",
            removed="! not_active ended",
        ),
        "leave": _row("left", **dict.fromkeys(_ENDED, "=")),
        "admit": _row(
            "! conflict ended", lobby="! not_open lobby", waiting="admitted", parked="admitted", ready="=", active="="
        ),
        "remove": _row("removed", **dict.fromkeys(_ENDED, "! conflict ended")),
        "transfer": _row("transferred", parked="transferred returned", **dict.fromkeys(_ENDED, "! conflict ended")),
    }
)

# What a join meets that would make a new place: state → (code, detail).
JOIN_REFUSALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "draft": ("not_open", "the event is not open yet"),
        "closed": ("closed", "the event is closed"),
    }
)

# Settings that may no longer change, by state.
TEXTS = frozenset(("name", "page", "return_to", "return_to_origins", "variants", "retention_s"))
_OPENING = frozenset(("queueing", "lobby", "lobby_opens_at_ms", "opens_at_ms"))
FIXED: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "draft": lambda name: False,
        "lobby": lambda name: name in ("queueing", "lobby"),
        "open": lambda name: name in _OPENING,
        "paused": lambda name: name in _OPENING,
        "closed": lambda name: name not in TEXTS,
    }
)
