"""Steering: the records of what an operator, or the schedule, does to an event as a whole.

`engine.transitions` says whether it may be done; here the fact is put into words, with what that action needs to be
told. Pausing and closing are views of the event: no visitor is touched, whatever the number of visitors.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from engine.actor import By
from engine.draw import commitment_of
from engine.errors import Refused
from engine.ledger import Ledger
from engine.records import Closed, Configured, Deleted, LobbyOpened, Messaged, Opened, Paused, Record, Reopened, Resumed
from engine.register import LOBBY

LOBBY_AFTER_START_MS = 60_000
SCHEDULE = "schedule"


class Particulars(NamedTuple):
    """What some actions need to be told beside who acts and why."""

    outcome: str | None
    draw_id: str
    secret: bytes
    beacon: str | None


def record_of(cell: str, ledger: Ledger, by: By, now_ms: int, particulars: Particulars) -> Record | None:
    """Return the record that a cell of the table of events names, None where nothing remains to be written.

    Raises Refused where what the action was told does not do.
    """
    return _RECORDS[cell](ledger, by, now_ms, particulars)


def _lobby_opened(ledger: Ledger, by: By, now_ms: int, what: Particulars) -> LobbyOpened:
    if not ledger.settings.lobby:
        raise Refused("conflict", "this event has no lobby; set lobby to true first", reason="no_lobby")
    commitment = commitment_of(what.secret)
    return LobbyOpened(ledger.event_id, now_ms, what.draw_id, commitment, what.beacon, by.actor, by.note)


def _opened(ledger: Ledger, by: By, now_ms: int, what: Particulars) -> Opened:
    if ledger.draw is None:
        return Opened(ledger.event_id, now_ms, "", None, 0, by.actor)
    if by.actor == SCHEDULE and now_ms - ledger.started_ms < LOBBY_AFTER_START_MS:
        raise Refused("conflict", "the server started less than a minute ago", reason="just_started")
    if commitment_of(what.secret) != ledger.draw.commitment:
        raise Refused("conflict", "the draw key is not the one this lobby was bound with", reason="draw_key")
    if ledger.draw.beacon is not None and not what.beacon:
        raise Refused("bad_request", f"beacon: the value of {ledger.draw.beacon} is required to open", field="beacon")
    beacon = what.beacon if ledger.draw.beacon is not None else None
    count = ledger.register.counts[LOBBY]
    return Opened(ledger.event_id, now_ms, what.secret.hex(), beacon, count, by.actor)


def _held(ledger: Ledger, by: By, now_ms: int, what: Particulars) -> Configured | None:
    """Pausing a lobby holds its opening back until somebody opens it or sets a time again."""
    settings = ledger.settings
    if settings.opens_at_ms is None:
        return None
    held = settings.as_map() | {"opens_at_ms": None}
    return Configured(ledger.event_id, now_ms, held, by.actor, by.reason, by.note)


# Record to write for an action → how to build it.
_RECORDS: Mapping[str, Callable[[Ledger, By, int, Particulars], Record | None]] = MappingProxyType(
    {
        "lobbyopened": _lobby_opened,
        "opened": _opened,
        "held": _held,
        "reopened": lambda ledger, by, now, _: Reopened(ledger.event_id, now, by.actor, by.note),
        "paused": lambda ledger, by, now, _: Paused(ledger.event_id, now, by.actor, by.reason or "", by.note),
        "messaged": lambda ledger, by, now, _: (
            Messaged(ledger.event_id, now, ledger.message or "", by.reason, by.actor, by.note)
            if by.reason != ledger.reason or by.note
            else None
        ),
        "resumed": lambda ledger, by, now, _: Resumed(ledger.event_id, now, by.actor, by.note),
        "closed": lambda ledger, by, now, what: Closed(
            ledger.event_id, now, by.actor, by.reason or "", what.outcome, by.note
        ),
        "deleted": lambda ledger, by, now, _: Deleted(ledger.event_id, now, by.actor, by.note),
    }
)
