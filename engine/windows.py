"""Windows: what runs for whoever is inside or stepped over, and how each begins, gets longer and ends.

Three of them, each in event time: the claim window of the ready, the session of the active, the grace of the parked.
A claim window ends a little later than it says, so that nobody loses a turn to a slow network. What the end leads to
stands in `engine.transitions`. When an event has been closed for long enough, who was there is forgotten.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from engine.deadlines import Deadlines
from engine.ledger import Ledger
from engine.records import Expired, Extended, Lapsed, Purged, Record, Redeemed
from engine.register import NONE, STATUSES
from engine.transitions import EVENT_ACTIONS, VISITOR_INPUTS

CLAIM_LEEWAY_MS = 5_000
PACER = "pacer"


def redemption(
    ledger: Ledger,
    arrival: int,
    jti: str,
    request: str | None,
    actor: str,
    wall_ms: int,
    now_ms: int,
    *,
    assumed: bool = False,
) -> Redeemed:
    """Return the record of a session that begins now; `assumed` where nobody showed the pass."""
    settings, event_ms = ledger.settings, ledger.event_time_ms(now_ms)
    limit_ms = event_ms + settings.session_max_s * 1000
    until_ms = event_ms + settings.session_ttl_s * 1000
    return Redeemed(ledger.event_id, now_ms, arrival, jti, request, wall_ms, until_ms, limit_ms, assumed, actor)


def extension(
    ledger: Ledger, arrival: int, deadlines: Deadlines, length_s: int, actor: str, now_ms: int
) -> Extended | None:
    """Return the record of `length_s` more from now on, within the limit; None where that would be no more."""
    until_ms = min(ledger.event_time_ms(now_ms) + length_s * 1000, ledger.limits_ms[arrival])
    is_more = until_ms > deadlines.at_ms[arrival]
    return Extended(ledger.event_id, now_ms, arrival, until_ms, actor) if is_more else None


def next_end(ledger: Ledger, now_ms: int) -> Record | None:
    """Return the record of the next thing that has run out, None where nothing has."""
    cell = EVENT_ACTIONS["windows"][ledger.state]
    if cell == "=":
        return None
    event_ms = ledger.event_time_ms(now_ms)
    for kind, (deadlines_of, leeway_ms, input_of) in _WINDOWS.items():
        if cell == "inside" and kind == "grace":
            continue
        arrival = deadlines_of(ledger).due(event_ms - leeway_ms)
        if arrival is not None:
            what = VISITOR_INPUTS[input_of(ledger, arrival)][STATUSES[ledger.register.status[arrival]]]
            return _RECORDS[what](ledger, arrival, now_ms)
    return _purge_if_due(ledger, now_ms)


def _purge_if_due(ledger: Ledger, now_ms: int) -> Purged | None:
    if ledger.state != "closed" or ledger.inside() or ledger.register.counts[NONE] == len(ledger.register):
        return None
    closed_for_ms = ledger.event_time_ms(now_ms) - ledger.closed_at_ms
    is_over = closed_for_ms >= ledger.settings.retention_s * 1000
    return Purged(ledger.event_id, now_ms) if is_over else None


def _input_when_claim_is_over(ledger: Ledger, arrival: int) -> str:
    if ledger.settings.redemption == "offline":
        return "claim_over_offline"
    return "claim_over_first" if ledger.register.releases(arrival) == 1 else "claim_over_again"


# Each window: where its deadlines are, how much later it ends than said, and what happens to whom it ends for.
_WINDOWS: Mapping[str, tuple[Callable[[Ledger], Deadlines], int, Callable[[Ledger, int], str]]] = MappingProxyType(
    {
        "claim": (lambda ledger: ledger.claims, CLAIM_LEEWAY_MS, _input_when_claim_is_over),
        "session": (lambda ledger: ledger.sessions, 0, lambda ledger, arrival: "session_over"),
        "grace": (lambda ledger: ledger.graces, 0, lambda ledger, arrival: "grace_over"),
    }
)

_RECORDS: Mapping[str, Callable[[Ledger, int, int], Record]] = MappingProxyType(
    {
        "lapsed": lambda ledger, arrival, now: Lapsed(ledger.event_id, now, arrival),
        "expired absent": lambda ledger, arrival, now: Expired(ledger.event_id, now, arrival, "absent"),
        "expired unclaimed": lambda ledger, arrival, now: Expired(ledger.event_id, now, arrival, "unclaimed"),
        "expired session": lambda ledger, arrival, now: Expired(ledger.event_id, now, arrival, "session"),
        "redeemed": lambda ledger, arrival, now: redemption(ledger, arrival, "", None, PACER, 0, now, assumed=True),
    }
)
