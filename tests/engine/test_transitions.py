"""The tables: complete, well formed, and in words that exist."""

import pytest

from engine.errors import STATUS_OF_CODE
from engine.records import KINDS
from engine.register import LIVE, STATUSES
from engine.settings import KNOBS
from engine.transitions import EVENT_ACTIONS, FIXED, JOIN_REFUSALS, STATES, TEXTS, VISITOR_INPUTS

NO_RECORDS = {"=", "seen", "repeat", "all", "inside", "held", "late"}
ALWAYS_POSSIBLE = {"join", "touch", "touch_hidden", "redeem", "extend_claim", "extend_session", "complete", "leave"}
OPERATORS = {"admit", "remove", "transfer"}


def test_every_action_says_what_it_does_in_every_state() -> None:
    assert all(tuple(cells) == STATES for cells in EVENT_ACTIONS.values())


def test_whatever_somebody_may_do_is_said_for_every_status() -> None:
    for what in ALWAYS_POSSIBLE | OPERATORS:
        assert set(VISITOR_INPUTS[what]) == set(STATUSES) - ({"none"} if what != "join" else set()), what


def test_what_only_time_does_is_said_for_the_statuses_that_time_can_end() -> None:
    of_time = {what: tuple(cells) for what, cells in VISITOR_INPUTS.items() if what not in ALWAYS_POSSIBLE | OPERATORS}
    assert of_time == {
        "reached_present": ("waiting",),
        "reached_absent": ("waiting",),
        "grace_over": ("parked",),
        "claim_over_first": ("ready",),
        "claim_over_again": ("ready",),
        "claim_over_offline": ("ready",),
        "session_over": ("active",),
    }


@pytest.mark.parametrize("table", [EVENT_ACTIONS, VISITOR_INPUTS], ids=["events", "visitors"])
def test_every_cell_is_a_record_a_word_or_a_refusal_with_a_known_code_and_a_reason(table: object) -> None:
    cells = {cell for row in table.values() for cell in row.values()}  # type: ignore[attr-defined]
    for cell in cells - NO_RECORDS:
        if cell.startswith("!"):
            mark, code, reason = cell.split()
            assert (mark, reason == reason.lower()) == ("!", True) and code in STATUS_OF_CODE, cell
        else:
            assert all(word in KINDS or word in ("absent", "unclaimed", "session") for word in cell.split()), cell


def test_places_that_ended_never_change_again_but_for_a_late_completion() -> None:
    ended = [status for number, status in enumerate(STATUSES) if number and number not in LIVE]
    changes = {
        (what, status, VISITOR_INPUTS[what][status])
        for what in VISITOR_INPUTS
        for status in ended
        if not VISITOR_INPUTS[what].get(status, "=").startswith(("=", "!"))
    }
    assert {(what, cell) for what, _, cell in changes} == {("join", "joined"), ("complete", "late")}
    assert ("complete", "expired", "late") in changes


def test_what_a_join_meets_agrees_with_the_states() -> None:
    assert set(JOIN_REFUSALS) == {"draft", "closed"}
    assert all(code in STATUS_OF_CODE for code, _ in JOIN_REFUSALS.values())


def test_only_settings_are_fixed_and_a_closed_event_changes_its_texts_alone() -> None:
    assert set(KNOBS) >= TEXTS and set(FIXED) == set(STATES)
    assert {name for name in KNOBS if not FIXED["closed"](name)} == TEXTS
    assert not any(FIXED["draft"](name) for name in KNOBS)
    assert {name for name in KNOBS if FIXED["lobby"](name)} == {"queueing", "lobby"}
    opening = {"queueing", "lobby", "lobby_opens_at_ms", "opens_at_ms"}
    for state in ("open", "paused"):
        assert {name for name in KNOBS if FIXED[state](name)} == opening
