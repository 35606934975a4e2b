"""The other thousand lives of a whole system, in a file of its own so that two processes share them."""

import pytest

from tests.simulation.lives import CHUNK, plans_that_failed, run_chunk, second_half
from tests.simulation.system import run_plan


@pytest.mark.slow
@pytest.mark.parametrize("first", second_half())
def test_no_promise_is_broken_in_any_other_life(first: int) -> None:
    assert run_chunk(range(first, first + CHUNK)) == []


@pytest.mark.slow
def test_lives_that_once_failed_never_fail_again() -> None:
    plans = plans_that_failed()
    assert plans
    assert [violation for plan in plans for violation in run_plan(plan).violations] == []
