"""A thousand lives of a whole system, and in none of them is a promise broken; the other thousand is next door."""

import pytest

from tests.simulation.lives import CHUNK, first_half, run_chunk
from tests.simulation.system import run_seed


@pytest.mark.slow
@pytest.mark.parametrize("first", first_half())
def test_no_promise_is_broken_in_any_life(first: int) -> None:
    assert run_chunk(range(first, first + CHUNK)) == []


@pytest.mark.slow
def test_a_seed_leads_the_same_life_again() -> None:
    for seed in (2, 5, 11, 26):
        once, again = run_seed(seed), run_seed(seed)
        assert once.trace == again.trace
        assert once.steps == again.steps
