"""The register: columns that agree with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.register import LEFT, ROWS_PER_PART, WAITING, Register

USER_IDS, UINT64 = st.text(min_size=1, max_size=8), st.integers(1, 2**64 - 1)
ROWS = st.lists(st.tuples(USER_IDS, UINT64, st.integers(1, 9), UINT64))


def filled(rows: list[tuple[str, int, int, int]]) -> Register:
    register = Register()
    for user_id, key, status, proof in rows:
        register.add(user_id, key, status, proof, 1_000)
    return register


@given(ROWS)
def test_what_is_captured_loads_into_the_same_register(rows: list[tuple[str, int, int, int]]) -> None:
    register, other = filled(rows), Register()
    for part in register.capture():
        other.load(part)  # type: ignore[arg-type]
    other.settle()
    other.check()
    register.check()
    assert (other.user_ids, other.keys, other.proofs, other.joined_ms, other.status, other.by_user, other.digest()) == (
        register.user_ids,
        register.keys,
        register.proofs,
        register.joined_ms,
        register.status,
        register.by_user,
        register.digest(),
    )


def test_parts_are_small_however_many_rows_there_are() -> None:
    register = filled([(f"u{index}", index + 1, WAITING, 0) for index in range(2 * ROWS_PER_PART + 1)])
    assert [len(part[1]) for part in register.capture()] == [ROWS_PER_PART, ROWS_PER_PART, 1]  # type: ignore[index]


def test_a_capture_read_late_shows_the_moment_it_was_taken() -> None:
    register = filled([("u1", 1, WAITING, 0)])
    parts = register.capture()
    register.move(1, LEFT)
    register.add("u2", 2, WAITING, 0, 2_000)
    (part,) = parts
    assert part[1:3] == [["u1"], bytes([WAITING])]  # type: ignore[index]


def test_the_digest_depends_on_key_and_status_of_every_row() -> None:
    base = filled([("u1", 5, WAITING, 0), ("u2", 6, WAITING, 0)])
    assert base.digest() != filled([("u1", 5, WAITING, 0), ("u2", 7, WAITING, 0)]).digest()
    base_digest = base.digest()
    base.move(2, LEFT)
    assert base.digest() != base_digest
    base.move(2, WAITING)
    assert base.digest() == base_digest


@pytest.mark.parametrize("column", ["keys", "proofs", "joined_ms", "ended_ms", "status", "marks"])
def test_the_checker_finds_a_column_of_another_length(column: str) -> None:
    register = filled([("u1", 5, WAITING, 0)])
    getattr(register, column).append(1)
    with pytest.raises(AssertionError):
        register.check()


def test_the_checker_finds_a_status_changed_behind_its_back() -> None:
    register = filled([("u1", 5, WAITING, 0)])
    register.status[1] = LEFT
    with pytest.raises(AssertionError):
        register.check()


def test_a_waiting_visitor_costs_columns_and_no_objects_of_its_own() -> None:
    register = filled([("u1", 5, WAITING, 0)])
    assert not hasattr(register, "__dict__")
    assert register.keys.itemsize == 8
