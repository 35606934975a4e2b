"""How many may enter now."""

from hypothesis import given
from hypothesis import strategies as st

from engine import pacing
from engine.settings import settings_from


def test_a_batch_is_the_least_of_line_cap_and_rate() -> None:
    settings = settings_from({"batch_size": 100, "max_active": 250})
    assert pacing.automatic(settings, 0, 1_000) == (100, "rate")
    assert pacing.automatic(settings, 200, 1_000) == (50, "capacity")
    assert pacing.automatic(settings, 200, 10) == (10, "line")
    assert pacing.automatic(settings, 300, 10) == (0, "capacity")


def test_the_safety_margin_is_kept_free() -> None:
    assert pacing.automatic(settings_from({"max_active": 50, "safety_margin": 8}), 40, 99) == (2, "capacity")


def test_without_a_cap_there_is_always_room() -> None:
    assert pacing.free_slots(settings_from({}), 10**9) == pacing.UNLIMITED


def test_passing_through_knows_no_rate_but_the_cap() -> None:
    settings = settings_from({"queueing": "passthrough", "max_active": 500, "batch_size": 1})
    assert pacing.automatic(settings, 0, 10_000) == (500, "capacity")
    assert pacing.next_due_ms(settings, 1_000) == 1_000 + pacing.PASSTHROUGH_INTERVAL_MS


def test_the_next_batch_is_an_interval_after_the_last_one() -> None:
    assert pacing.next_due_ms(settings_from({"batch_interval_s": 7}), 1_000) == 8_000


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 100), st.integers(0, 99), st.integers(1, 500))
def test_no_batch_goes_over_the_cap_the_rate_or_the_line(
    inside: int, waiting: int, cap: int, margin: int, batch: int
) -> None:
    settings = settings_from({"max_active": cap, "safety_margin": min(margin, cap - 1), "batch_size": batch})
    allowed = pacing.automatic(settings, inside, waiting)
    assert 0 <= allowed.visitors <= min(waiting, batch)
    assert allowed.visitors == 0 or inside + allowed.visitors <= cap - settings.safety_margin
    assert allowed.limited_by in ("line", "capacity", "rate")
