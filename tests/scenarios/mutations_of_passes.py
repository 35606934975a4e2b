"""What must be found, part two: faults put into a valid history, of passes, sessions, windows and devices."""

import random
from dataclasses import replace

from tests.scenarios.faultless import LIMITS
from tests.scenarios.history import LIVE, Entry, Evidence
from tests.scenarios.mutations import (
    Mutation,
    of_kind,
    of_op,
    pick,
    status_after,
    with_entry,
    with_line,
    with_new_entry,
    with_new_line,
    without_line,
)

# ---- windows --------------------------------------------------------------------------------------------


def let_a_turn_lapse_too_early(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Write a lapse, or the expiry of an unclaimed turn, before window and leeway are over."""
    over = of_kind(evidence, "lapsed") + [at for at in of_kind(evidence, "expired") if of_a_turn(evidence, at)]
    at = pick(over, chance)
    if at is None:
        return None
    until_ms = begun_ms(evidence, at) + LIMITS.claim_window_s * 1000
    return with_line(evidence, at, at_ms=min(until_ms + chance.choice((0, 4_999)), evidence.log[at].at_ms - 2_000))


def of_a_turn(evidence: Evidence, at: int) -> bool:
    return evidence.log[at].cause == "unclaimed"


def begun_ms(evidence: Evidence, at: int) -> int:
    """Return when the turn began that is over with a record."""
    arrival = evidence.log[at].arrival
    turns = [
        line.at_ms
        for line in evidence.log[:at]
        if (line.kind == "released" and arrival in line.numbers)
        or (line.kind == "admitted" and line.arrival == arrival)
    ]
    return turns[-1]


def let_a_session_expire_at_once(evidence: Evidence, chance: random.Random) -> Evidence | None:
    return expired_at_once(evidence, chance, "session")


def let_grace_end_at_once(evidence: Evidence, chance: random.Random) -> Evidence | None:
    return expired_at_once(evidence, chance, "absent")


def expired_at_once(evidence: Evidence, chance: random.Random, cause: str) -> Evidence | None:
    """Write the end of a session, or of the time that a parked place is kept, at the moment of its beginning."""
    at = pick([at for at in of_kind(evidence, "expired") if evidence.log[at].cause == cause], chance)
    if at is None:
        return None
    arrival, begins = evidence.log[at].arrival, ("redeemed", "lapsed", "parked")
    began = [
        line.at_ms
        for line in evidence.log[:at]
        if line.kind in begins and (line.arrival == arrival or arrival in line.numbers)
    ]
    return with_line(evidence, at, at_ms=began[-1] + 1)


def let_a_first_turn_expire(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "lapsed"), chance)
    return None if at is None else with_line(evidence, at, kind="expired", cause="unclaimed")


def shorten_a_window(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "released", "admitted", "redeemed"), chance)
    return None if at is None else with_line(evidence, at, until_ms=evidence.log[at].until_ms - 1)


def lengthen_a_window(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "released", "admitted", "redeemed"), chance)
    return None if at is None else with_line(evidence, at, until_ms=evidence.log[at].until_ms + 1)


def extend_beyond_the_most(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "extended"), chance)
    return None if at is None else with_line(evidence, at, until_ms=evidence.log[at].until_ms + 5_000)


def let_a_session_last_too_long(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "redeemed"), chance)
    return None if at is None else with_line(evidence, at, limit_ms=evidence.log[at].limit_ms + 1)


def lose_an_extension(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Take all extensions of a place out of the log, of one whose windows all began while time ran."""
    told = {evidence.entries[at].arrival for at in of_op(evidence, "extend", "extend_claim")}
    paused = False
    for line in evidence.log:
        paused = line.kind == "paused" or (paused and line.kind != "resumed")
        if paused and line.kind in ("released", "admitted", "redeemed"):
            told -= {line.arrival, *line.numbers}
    if not told:
        return None
    arrival = chance.choice(sorted(told))
    return replace(evidence, log=[e for e in evidence.log if (e.kind, e.arrival) != ("extended", arrival)])


# ---- passes and sessions --------------------------------------------------------------------------------


def redeem_twice_on_record(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "redeemed"), chance)
    if at is None:
        return None
    line = evidence.log[at]
    windows = {"until_ms": line.until_ms, "limit_ms": line.limit_ms}
    return with_new_line(evidence, at, "redeemed", arrival=line.arrival, jti=line.jti, request="other", **windows)


def let_two_in_with_one_pass(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "redeem"), chance)
    return None if at is None else with_new_entry(evidence, "redeem", evidence.entries[at], key="somebody else")


def lose_a_redeem(evidence: Evidence, chance: random.Random) -> Evidence | None:
    told = {evidence.entries[at].jti for at in of_op(evidence, "redeem")}
    at = pick([at for at in of_kind(evidence, "redeemed") if evidence.log[at].jti in told], chance)
    return None if at is None else without_line(evidence, at)


def answer_a_redeem_differently(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "redeem"), chance)
    return None if at is None else with_new_entry(evidence, "redeem", evidence.entries[at], answer="another session")


def redeem_after_the_turn(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Redeem on record when the turn has lapsed, or the place has expired or was taken away."""
    redeemed = {line.arrival for line in evidence.log if line.kind == "redeemed"}
    over = [at for at in of_kind(evidence, "lapsed", "expired", "removed") if evidence.log[at].arrival not in redeemed]
    at = pick(over, chance)
    return None if at is None else with_new_line(evidence, at, "redeemed", arrival=evidence.log[at].arrival, jti="x")


def redeem_the_pass_of_the_first_turn(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Redeem in the second turn what was handed out in the first."""
    handed_out = {entry.jti for entry in evidence.entries if entry.op == "position"}
    second = [at for at in of_kind(evidence, "redeemed") if evidence.log[at].jti.endswith("-2")]
    first = {at: evidence.log[at].jti.removesuffix("-2") + "-1" for at in second}
    at = pick([at for at, jti in first.items() if jti in handed_out], chance)
    return None if at is None else with_line(evidence, at, jti=first[at])


def hand_out_somebody_elses_pass(evidence: Evidence, chance: random.Random) -> Evidence | None:
    shown = [at for at in of_op(evidence, "position", "extend_claim") if evidence.entries[at].jti]
    at = pick(shown, chance)
    others = sorted(
        {evidence.entries[a].jti for a in shown if at and evidence.entries[a].jti != evidence.entries[at].jti}
    )
    return with_entry(evidence, at, jti=chance.choice(others)) if at is not None and others else None


def redeem_after_the_acknowledged_end(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "leave", "complete", "remove"), chance)
    return None if at is None else with_new_entry(evidence, "redeem", evidence.entries[at], jti="y", answer="a session")


def extend_a_session_after_removal(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "remove"), chance)
    return None if at is None else with_new_entry(evidence, "extend", evidence.entries[at], status="active")


def extend_on_record_after_the_end(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "removed", "completed", "expired", "lapsed"), chance)
    if at is None:
        return None
    line = evidence.log[at]
    return with_new_line(evidence, at, "extended", arrival=line.arrival, until_ms=line.at_ms + 1_000)


# ---- devices --------------------------------------------------------------------------------------------


def go_back_a_generation(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_kind(evidence, "transferred"), chance)
    return None if at is None else with_line(evidence, at, generation=evidence.log[at].generation - 1)


def lose_a_transfer(evidence: Evidence, chance: random.Random) -> Evidence | None:
    told = {(evidence.entries[at].arrival, evidence.entries[at].generation) for at in of_op(evidence, "accept")}
    lines = of_kind(evidence, "transferred")
    at = pick([at for at in lines if (evidence.log[at].arrival, evidence.log[at].generation) in told], chance)
    return None if at is None else without_line(evidence, at)


def give_one_generation_to_two(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "accept"), chance)
    return None if at is None else with_new_entry(evidence, "accept", evidence.entries[at], key="a third device")


def hand_a_pass_to_an_old_token(evidence: Evidence, chance: random.Random) -> Evidence | None:
    """Show somebody ready with a pass to the token from before a transfer."""
    held = [at for at in of_op(evidence, "position") if evidence.entries[at].jti and evidence.entries[at].generation]
    at = pick(held, chance)
    return None if at is None else with_entry(evidence, at, generation=evidence.entries[at].generation - 1)


def let_an_old_token_write(evidence: Evidence, chance: random.Random) -> Evidence | None:
    at = pick(of_op(evidence, "accept"), chance)
    if at is None:
        return None
    accepted = evidence.entries[at]
    op = chance.choice(("leave", "extend_claim", "heartbeat"))
    return with_new_entry(evidence, op, accepted, generation=accepted.generation - 1)


# ---- refusals -------------------------------------------------------------------------------------------


def turn_a_good_pass_away(evidence: Evidence, chance: random.Random) -> Evidence | None:
    status = status_after(evidence, len(evidence.log))
    lapsed = {line.arrival for line in evidence.log if line.kind == "lapsed"}
    good = sorted(arrival for arrival, its in status.items() if its in ("ready", "active") and arrival not in lapsed)
    if not good:
        return None
    arrival = chance.choice(good)
    key = next((line.request for line in evidence.log if (line.kind, line.arrival) == ("redeemed", arrival)), None)
    jti = f"pass-{arrival}-1"
    refusal = chance.choice(("pass_used", "pass_expired", "not_active"))
    shown = Entry(9, "redeem", 0, 0, evidence.final[arrival].user_id, key or "k", arrival, arrival, jti=jti)
    return with_new_entry(evidence, "redeem", shown, refusal=refusal)


def turn_away_one_who_was_not_banned(evidence: Evidence, chance: random.Random) -> Evidence | None:
    banned = {line.user_id for line in evidence.log if line.kind == "banned"}
    others = sorted({place.user_id for place in evidence.final.values()} - banned)
    if not others:
        return None
    return with_new_entry(evidence, "join", Entry(9, "join", 0, 0, chance.choice(others)), refusal="banned")


def call_a_token_old_that_is_not(evidence: Evidence, chance: random.Random) -> Evidence | None:
    live = sorted(arrival for arrival, place in evidence.final.items() if place.status in LIVE)
    if not live:
        return None
    arrival = chance.choice(live)
    newest = sum(line.kind == "transferred" and line.arrival == arrival for line in evidence.log)
    asked = Entry(9, "heartbeat", 0, 0, evidence.final[arrival].user_id, "", arrival, arrival, generation=newest)
    return with_new_entry(evidence, "heartbeat", asked, refusal="read_only")


MUTATIONS_OF_PASSES: dict[Mutation, set[str]] = {
    let_a_turn_lapse_too_early: {"cut_short"},
    let_a_session_expire_at_once: {"cut_short"},
    let_grace_end_at_once: {"cut_short"},
    let_a_first_turn_expire: {"cut_short"},
    shorten_a_window: {"cut_short"},
    lengthen_a_window: {"beyond_limit"},
    extend_beyond_the_most: {"beyond_limit"},
    let_a_session_last_too_long: {"beyond_limit"},
    lose_an_extension: {"lost"},
    lose_a_redeem: {"lost"},
    lose_a_transfer: {"lost"},
    redeem_twice_on_record: {"redeemed_twice"},
    let_two_in_with_one_pass: {"redeemed_twice"},
    answer_a_redeem_differently: {"changed_answer"},
    redeem_after_the_turn: {"dead_pass"},
    redeem_the_pass_of_the_first_turn: {"dead_pass"},
    hand_out_somebody_elses_pass: {"dead_pass"},
    redeem_after_the_acknowledged_end: {"dead_pass"},
    extend_a_session_after_removal: {"outlived"},
    extend_on_record_after_the_end: {"outlived"},
    go_back_a_generation: {"generation"},
    give_one_generation_to_two: {"generation"},
    hand_a_pass_to_an_old_token: {"old_token"},
    let_an_old_token_write: {"old_token"},
    turn_a_good_pass_away: {"turned_away"},
    turn_away_one_who_was_not_banned: {"turned_away"},
    call_a_token_old_that_is_not: {"turned_away"},
}
