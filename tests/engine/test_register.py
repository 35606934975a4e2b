"""The register: columns that agree with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.line import order_key
from engine.register import (
    CAUSE_BITS,
    CAUSES,
    EXPIRED,
    LEFT,
    LOBBY,
    NONE,
    ONE_RELEASE,
    PARKED,
    READMITTED,
    READY,
    ROWS_PER_PART,
    STATUSES,
    STEPPED_OVER,
    WAITING,
    Register,
    from_little_endian,
    lobby_key,
)

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


def test_a_gap_belongs_to_nobody_until_a_row_of_it_is_filled() -> None:
    register = filled([("u1", 1, WAITING, 0)])
    before = register.digest()
    register.skip(5)
    assert (len(register), register.counts[NONE], register.digest()) == (6, 5, before)
    assert register.arrival_of(3) == 0
    register.fill(3, "u3", order_key(3), WAITING, 9)
    assert (register.arrival_of(3), register.by_user["u3"], register.marks[3]) == (3, 3, READMITTED)
    register.check()


def test_whoever_was_readmitted_is_found_there_after_loading_though_a_later_row_was_theirs() -> None:
    register = filled([("u1", order_key(1), WAITING, 0)])
    register.skip(3)
    late = register.add("u3", order_key(5), LEFT, 0, 9)
    register.fill(3, "u3", order_key(3), WAITING, 9)
    other = Register()
    for part in register.capture():
        other.load(part)  # type: ignore[arg-type]
    other.settle()
    assert (late, register.by_user["u3"], other.by_user["u3"]) == (5, 3, 3)


def test_a_number_is_the_arrival_until_a_lobby_was_drawn() -> None:
    register = filled([("u1", order_key(1), WAITING, 0)])
    assert [register.arrival_of(number) for number in (0, 1, 2)] == [0, 1, 0]


def test_a_drawn_number_leads_to_whoever_drew_it_and_later_ones_to_themselves() -> None:
    register = filled([(f"u{index}", lobby_key(index), LOBBY, 0) for index in (1, 2, 3)])
    assert [register.arrival_of(number) for number in (1, 2, 3)] == [0, 0, 0]
    register.begin_draw(3)
    for number, arrival in enumerate((3, 1, 2), 1):
        register.number(arrival, number, order_key(number))
    register.add("late", order_key(4), WAITING, 0, 9)
    assert [register.arrival_of(number) for number in (1, 2, 3, 4, 5)] == [3, 1, 2, 4, 0]
    register.check()
    register.drawn[1], register.drawn[2] = register.drawn[2], register.drawn[1]
    with pytest.raises(AssertionError, match="did not draw"):
        register.check()


def test_numbering_a_row_keeps_the_digest_right_and_leaves_a_capture_as_it_was() -> None:
    register = filled([("u1", lobby_key(1), LOBBY, 0), ("u2", lobby_key(2), LEFT, 0)])
    parts = register.capture()
    register.begin_draw(2)
    register.number(1, 2, order_key(2))
    register.number(2, 1, order_key(1))
    register.check()
    (part,) = parts
    assert from_little_endian(part[4]).tolist() == [lobby_key(1), lobby_key(2)]  # type: ignore[index]


def test_marks_count_releases_and_are_part_of_the_digest() -> None:
    register = filled([("u1", order_key(1), WAITING, 0)])
    before = register.digest()
    register.set(1, READY, register.marks[1] + ONE_RELEASE)
    assert (register.releases(1), register.digest() != before) == (1, True)
    register.set(1, PARKED, register.marks[1] | STEPPED_OVER)
    register.set(1, READY, register.marks[1] + ONE_RELEASE)
    assert register.releases(1) == 2
    register.set(1, EXPIRED, register.marks[1] | CAUSES.index("unclaimed"))
    assert (register.releases(1), register.marks[1] & CAUSE_BITS) == (2, CAUSES.index("unclaimed"))
    register.check()


def test_a_status_and_a_mark_never_weigh_the_same() -> None:
    digests = set()
    for status in range(1, len(STATUSES)):
        for marks in range(256):
            register = filled([("u1", 1, WAITING, 0)])
            register.set(1, status, marks)
            digests.add(register.digest())
    assert len(digests) == 9 * 256
