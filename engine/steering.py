"""Steering: the records of what an operator, or the schedule, does to an event as a whole.

`engine.transitions` says whether it may be done; here the fact is put into words, with what that action needs to be
told. Pausing and closing are views of the event: no visitor is touched, whatever the number of visitors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from engine import pacing
from engine.actor import By
from engine.draw import commitment_of
from engine.errors import Refused
from engine.ledger import Ledger
from engine.records import Closed, Configured, Deleted, LobbyOpened, Messaged, Opened, Paused, Record, Reopened, Resumed
from engine.register import LOBBY, PARKED, READY, WAITING
from engine.settings import Settings
from engine.transitions import FIXED

LOBBY_AFTER_START_MS = 60_000
SCHEDULE = "schedule"
MAY_STILL_WAIT = frozenset((LOBBY, WAITING, PARKED, READY))


class Particulars(NamedTuple):
    """What some actions need to be told beside who acts and why."""

    outcome: str | None
    draw_id: str
    secret: bytes
    beacon: str | None


def check_change(ledger: Ledger, settings: Settings, changed: Sequence[str], by: By) -> None:
    """Refuse settings that may not become these now, or not without a reason; O(groups in line) where the cap falls."""
    fixed = [name for name in changed if FIXED[ledger.state](name)]
    if fixed:
        detail = f"{', '.join(fixed)} cannot change while the event is {ledger.state}"
        raise Refused("conflict", detail, reason=ledger.state)
    if ledger.state != "draft" and _lowers_rate(ledger.settings, settings):
        by.require_reason("lower the rate")
    if "opens_at_ms" in changed and ledger.settings.opens_at_ms is not None:
        by.require_reason("move the opening")
    if "priority_boost" in changed and any(_queued(ledger, ledger.levels)):
        detail = "priority_boost cannot change while somebody with priority is in line: equal levels would overtake"
        raise Refused("conflict", detail, reason="priority_in_line")
    largest = max((ledger.sizes[arrival] for arrival in _queued(ledger, ledger.sizes)), default=0)
    if largest > pacing.free_slots(settings, 0):
        detail = f"a group of {largest} is in line, which could never enter: leave room for it, or remove it first"
        raise Refused("conflict", detail, reason="group_in_line")


def _queued(ledger: Ledger, arrivals: Iterable[int]) -> Iterator[int]:
    return (arrival for arrival in arrivals if ledger.register.status[arrival] in MAY_STILL_WAIT)


def _lowers_rate(before: Settings, after: Settings) -> bool:
    return after.batch_size * before.batch_interval_s < before.batch_size * after.batch_interval_s


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
        return Opened(ledger.event_id, now_ms, "", None, 0, by.actor, by.note)
    if by.actor == SCHEDULE and now_ms - ledger.started_ms < LOBBY_AFTER_START_MS:
        raise Refused("conflict", "the server started less than a minute ago", reason="just_started")
    if commitment_of(what.secret) != ledger.draw.commitment:
        raise Refused("conflict", "the draw key is not the one this lobby was bound with", reason="draw_key")
    if ledger.draw.beacon is not None and not what.beacon:
        raise Refused("bad_request", f"beacon: the value of {ledger.draw.beacon} is required to open", field="beacon")
    beacon = what.beacon if ledger.draw.beacon is not None else None
    count = ledger.register.counts[LOBBY]
    return Opened(ledger.event_id, now_ms, what.secret.hex(), beacon, count, by.actor, by.note)


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
