"""What may happen: the reference tables of events and visitors, as data.

EVENT_ACTIONS says for each action of an operator (or of the pacer) and each state of the event, and
VISITOR_INPUTS for each thing a visitor or the site may do and each status of a visitor, which record is written,
or "=" for nothing to do, or "! reason" for a 409. `engine.room` builds the records these tables name and
decides nothing that stands here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

STATES = ("draft", "open", "paused", "closed")

EVENT_ACTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "open": {"draft": "opened", "open": "=", "paused": "! paused: resume it", "closed": "reopened"},
        "pause": {"draft": "! not_open", "open": "paused", "paused": "messaged", "closed": "! closed"},
        "resume": {"draft": "! not_open", "open": "=", "paused": "resumed", "closed": "! closed"},
        "close": {"draft": "closed", "open": "closed", "paused": "closed", "closed": "="},
        "release": {"draft": "! not_open", "open": "released", "paused": "released", "closed": "! closed"},
        "tick": {"draft": "=", "open": "released", "paused": "=", "closed": "="},
        "delete": {"draft": "deleted", "open": "! open", "paused": "! paused", "closed": "deleted"},
    }
)

VISITOR_INPUTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "join": {
            **dict.fromkeys(("none", "completed", "expired", "left", "removed"), "joined"),
            **dict.fromkeys(("lobby", "waiting", "parked", "ready", "active"), "="),
        },
        "leave": {
            **dict.fromkeys(("lobby", "waiting", "parked", "ready", "active"), "left"),
            **dict.fromkeys(("completed", "expired", "left", "removed"), "="),
        },
        "complete": {
            **dict.fromkeys(("ready", "active"), "completed"),
            "completed": "=",
            **dict.fromkeys(("lobby", "waiting", "parked"), "! not_released"),
            **dict.fromkeys(("expired", "left", "removed"), "! ended"),
        },
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
FIXED: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "draft": lambda name: False,
        "open": lambda name: name in ("queueing", "lobby", "lobby_opens_at_ms", "opens_at_ms"),
        "paused": lambda name: name in ("queueing", "lobby", "lobby_opens_at_ms", "opens_at_ms"),
        "closed": lambda name: name not in TEXTS,
    }
)
