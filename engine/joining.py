"""Joining: whether somebody may take a new place, and where in the order it stands. Pure functions of the ledger."""

from engine import pacing
from engine.actor import Entrant
from engine.errors import Refused
from engine.ledger import Ledger
from engine.line import NUMBER_BITS, order_key
from engine.register import lobby_key
from engine.transitions import JOIN_REFUSALS

NUMBER_LIMIT = 2**32
RETRY_AFTER_S = 30


def key_at_joining(state: str, arrival: int, level: int, boost: int) -> int:
    """Return the order key of a newcomer: in a lobby without a number, else with the arrival as number."""
    if state == "lobby":
        return lobby_key(arrival)
    return order_key(arrival, level, boost) if level else arrival << NUMBER_BITS | arrival


def check_join(ledger: Ledger, entrant: Entrant) -> None:
    """Raise Refused unless this entrant may have a new place."""
    settings = ledger.settings
    check_may_be_here(ledger, entrant.user_id)
    if entrant.word == "enqueue" and entrant.proof in ledger.spent:
        raise Refused("enqueue_token_used", "this enqueue token has made its place already", reason="used")
    if entrant.word == "visitor" and settings.join_policy == "signed":
        detail = "this event is joined with an enqueue token of the shop"
        raise Refused("bad_enqueue_token", detail, field="enqueue_token")
    if settings.queueing == "reject":
        raise Refused("rejecting", "this event takes nobody new", retry_after_s=RETRY_AFTER_S)
    if settings.max_waiting is not None and ledger.queued() >= settings.max_waiting:
        raise Refused("queue_full", "the line is full", retry_after_s=RETRY_AFTER_S)
    if len(ledger.register.user_ids) >= NUMBER_LIMIT:
        raise Refused("queue_full", "this event has given out all its numbers")
    if entrant.size > 1 and entrant.size > pacing.free_slots(settings, 0):
        raise Refused("at_capacity", f"a group of {entrant.size} could never enter together", reason="group_too_large")


def check_may_be_here(ledger: Ledger, user_id: str) -> None:
    """Raise Refused where the event takes nobody, or not this identity."""
    if ledger.state in JOIN_REFUSALS:
        code, detail = JOIN_REFUSALS[ledger.state]
        raise Refused(code, detail, reason=ledger.state)
    if user_id in ledger.banned:
        raise Refused("banned", "this visitor may not join this event")
