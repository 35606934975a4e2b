"""The line against a plain sorted list."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import line as line_module
from engine.line import Line, number_of, order_key

NUMBERS = st.sets(st.integers(1, 400), max_size=120)


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(line_module).failed == 0


@given(st.integers(1, 2**32 - 1), st.integers(0, 9), st.integers(0, 10**6))
def test_an_order_key_gives_its_number_back_and_priority_only_ever_lowers_it(
    number: int, level: int, boost: int
) -> None:
    key = order_key(number, level, boost)
    assert number_of(key) == number
    assert key <= order_key(number)
    assert key < 2**64


def test_priority_follows_the_rule_of_the_seed() -> None:
    assert order_key(5_000, 2, 1_000) >> 32 == 3_000
    assert order_key(500, 9, 1_000) >> 32 == 1


@given(NUMBERS, st.data())
def test_ranks_are_those_of_a_sorted_list_through_adding_and_removing(numbers: set[int], data: st.DataObject) -> None:
    line, model = Line(), []
    for number in data.draw(st.permutations(sorted(numbers))):
        key = order_key(number)
        line.add(key)
        model.append(key)
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(model))
            line.remove(gone)
            model.remove(gone)
    model.sort()
    line.check()
    assert [line.rank(key) for key in model] == list(range(len(model)))
    assert line.head(5) == model[:5]
    assert line.tail() == (model[-1] if model else None)


@given(NUMBERS, st.data())
def test_many_ranks_at_once_are_the_ranks_one_by_one(numbers: set[int], data: st.DataObject) -> None:
    keys = sorted(order_key(number) for number in numbers)
    line = Line(keys)
    asked = sorted(data.draw(st.lists(st.sampled_from(keys), max_size=40)) if keys else [])
    assert line.ranks(asked) == [line.rank(key) for key in asked]


@pytest.mark.parametrize("stride", [1, 2, 40])
def test_many_ranks_at_once_are_right_whether_dense_or_sparse(stride: int) -> None:
    keys = [order_key(number) for number in range(1, 5_000)]
    assert Line(keys).ranks(keys[7::stride]) == list(range(7, len(keys), stride))


def test_the_newest_key_knows_its_rank_wherever_it_stands() -> None:
    line = Line([order_key(number) for number in range(1, 2_000)])
    line.add(order_key(2_000))
    assert line.ends_with(order_key(2_000))
    line.add(order_key(2_001, 1, 1_000))
    assert not line.ends_with(order_key(2_001, 1, 1_000))


def test_dropping_the_head_moves_everybody_up() -> None:
    line = Line([order_key(number) for number in range(1, 3_001)])
    line.drop_head(1_000)
    line.check()
    assert line.rank(order_key(1_001)) == 0
    assert len(line) == 2_000


def test_removing_who_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in list"):
        Line([order_key(1)]).remove(order_key(2))


def test_the_checker_finds_a_key_that_is_no_order_key() -> None:
    with pytest.raises(AssertionError):
        Line([7]).check()
