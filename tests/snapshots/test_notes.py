"""The two notes of a folder: what is being done to it as a whole, and how far a mirrored log is on disk."""

import pytest

from snapshots.memory_storage import MemoryStorage, crash_states
from snapshots.notes import (
    COPYING,
    INCOMPLETE_NAME,
    MIRRORED_NAME,
    FlushedNote,
    mark_complete,
    mark_incomplete,
    read_note,
    why_incomplete,
)
from snapshots.segments import LogPosition


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    storage.make_folder("log")
    storage.sync_directory("")
    return storage


def at(sequence: int, offset: int) -> LogPosition:
    return LogPosition(0, 0, sequence, offset)


def test_what_is_being_done_is_told_until_it_is_done(storage: MemoryStorage) -> None:
    assert why_incomplete(storage) is None
    mark_incomplete(storage, "being filled")
    assert why_incomplete(storage) == "being filled"
    mark_complete(storage)
    assert why_incomplete(storage) is None


def test_an_empty_mark_is_that_of_a_copy(storage: MemoryStorage) -> None:
    storage.create(INCOMPLETE_NAME).close()
    assert why_incomplete(storage) == COPYING


def test_a_power_cut_leaves_the_whole_sentence_or_none(storage: MemoryStorage) -> None:
    mark_incomplete(storage, "being filled")
    storage.mark("marked")
    mark_complete(storage)
    for state in crash_states(storage.trace):
        why = why_incomplete(MemoryStorage(state.image))
        assert why in ("being filled", None)


def test_there_is_no_note_before_one_is_begun(storage: MemoryStorage) -> None:
    note = FlushedNote(storage)
    note.move(at(1, 64))
    assert read_note(storage) is None
    note.begin(at(1, 64))
    assert read_note(storage) == (1, 64)


def test_a_note_only_moves_on_until_it_is_begun_anew(storage: MemoryStorage) -> None:
    note = FlushedNote(storage)
    note.begin(at(2, 500))
    for position, read in (
        (at(2, 900), (2, 900)),
        (at(2, 700), (2, 900)),
        (at(1, 5000), (2, 900)),
        (at(3, 64), (3, 64)),
    ):
        note.move(position)
        assert read_note(storage) == read
    note.begin(at(1, 64))
    assert read_note(storage) == (1, 64)
    note.close()
    note.move(at(9, 64))
    assert read_note(storage) == (1, 64)


def test_after_a_power_cut_the_note_is_one_of_the_last_two(storage: MemoryStorage) -> None:
    note = FlushedNote(storage)
    note.begin(at(1, 64))
    storage.mark(64)
    for offset in range(164, 1064, 100):
        note.move(at(1, offset))
        storage.mark(offset)
    count = 0
    for state in crash_states(storage.trace):
        if isinstance(state.promised, int):
            count += 1
            assert read_note(MemoryStorage(state.image)) in ((1, state.promised), (1, state.promised + 100))
    assert count > 40


def test_a_flipped_bit_makes_a_slot_count_for_nothing(storage: MemoryStorage) -> None:
    note = FlushedNote(storage)
    note.begin(at(1, 64))
    note.move(at(1, 164))
    file = storage.open_file(MIRRORED_NAME)
    for offset in range(36):
        for slot, left in ((512, (1, 64)), (0, (1, 164))):
            byte = storage.read(MIRRORED_NAME, slot + offset, 1)
            file.write(slot + offset, bytes([byte[0] ^ 1]))
            assert read_note(storage) == left
            file.write(slot + offset, byte)
    file.truncate(20)
    assert read_note(storage) is None
