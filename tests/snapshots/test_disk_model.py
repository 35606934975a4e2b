"""The crash model leaves a crash every freedom a disk has, and no more."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from snapshots.disk_model import SECTOR_BYTES, DiskModel, FileState, Image


def model_with(*names: str) -> DiskModel:
    model = DiskModel(Image(frozenset(("log",)), tuple((name, b"old") for name in names)))
    assert model.crash_images() == {model.image()}
    return model


def outcomes(model: DiskModel) -> set[tuple[tuple[str, bytes], ...]]:
    return {image.files for image in model.crash_images()}


def test_an_unflushed_write_may_be_there_in_any_amount_of_sectors() -> None:
    state = FileState(bytes(3 * SECTOR_BYTES), bytearray(3 * SECTOR_BYTES))
    state.write(0, b"x" * 3 * SECTOR_BYTES)
    contents = state.crash_contents()
    sectors = {tuple(content[at * SECTOR_BYTES] == 120 for at in range(3)) for content in contents}
    assert {(False,) * 3, (True, False, False), (True, True, False), (True,) * 3} <= sectors
    assert {(False, True, True), (True, False, True)} <= sectors
    torn = {content.count(b"x") for content in contents}
    assert {2 * SECTOR_BYTES + 1, 3 * SECTOR_BYTES - 1} <= torn


def test_a_file_may_have_grown_without_what_was_written() -> None:
    state = FileState()
    state.write(0, b"content")
    assert {b"", bytes(7), b"content"} <= state.crash_contents()


def test_a_flushed_write_is_there() -> None:
    state = FileState()
    state.write(0, b"content")
    state.flush(with_size=False)
    assert state.crash_contents() == {b"content"}


def test_a_cut_is_there_only_after_an_fsync() -> None:
    state = FileState(b"0123456789", bytearray(b"0123456789"))
    state.truncate(4)
    state.flush(with_size=False)
    assert b"0123456789" in state.crash_contents()
    state.flush(with_size=True)
    assert state.crash_contents() == {b"0123"}


def test_after_a_failed_flush_nothing_of_it_is_ever_durable() -> None:
    state = FileState(b"old", bytearray(b"old"))
    state.write(0, b"new")
    state.lose()
    state.flush(with_size=True)
    assert bytes(state.cached) == b"new"
    assert state.crash_contents() == {b"old"}
    state.drop_cache()
    assert bytes(state.cached) == b"old"


def test_unflushed_names_may_each_have_happened_or_not() -> None:
    model = model_with("log/a", "log/b")
    model.rename("log/a", "log/c")
    model.unlink("log/b")
    a, b, c = (("log/a", b"old"), ("log/b", b"old"), ("log/c", b"old"))
    assert outcomes(model) == {(a, b), (a,), (b, c), (c,)}
    model.sync_directory("log")
    assert outcomes(model) == {(c,)}


def test_a_rename_does_not_make_the_content_durable() -> None:
    model = model_with()
    inode = model.create("log/a")
    model.files[inode].write(0, b"content")
    model.rename("log/a", "log/b")
    model.sync_directory("log")
    assert {(("log/b", b""),), (("log/b", bytes(7)),), (("log/b", b"content"),)} <= outcomes(model)


def test_a_folder_that_was_not_flushed_may_be_gone_with_all_that_is_in_it() -> None:
    model = DiskModel(Image())
    model.folders.add("log")
    model.create("log/a")
    model.sync_directory("log")
    assert outcomes(model) == {(), (("log/a", b""),)}
    model.sync_directory("")
    assert outcomes(model) == {(("log/a", b""),)}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2_000), st.binary(min_size=1, max_size=1_500)), max_size=6),
    st.integers(0, 6),
)
def test_old_and_new_are_among_the_outcomes_and_what_was_flushed_never_changes(
    writes: list[tuple[int, bytes]], flushed: int
) -> None:
    state = FileState()
    for offset, data in writes[:flushed]:
        state.write(offset, data)
    state.flush(with_size=True)
    durable = bytes(state.cached)
    for offset, data in writes[flushed:]:
        state.write(offset, data)
    contents = state.crash_contents()
    assert {durable, bytes(state.cached)} <= contents
    for content in contents:
        assert all(
            byte in (old, new)
            for byte, old, new in zip(content, durable.ljust(len(content), b"\0"), bytes(state.cached), strict=False)
        )


def test_a_crash_by_chance_leaves_each_state_that_a_crash_may_leave_and_no_other() -> None:
    model = model_with("log/a")
    model.files[model.names["log/a"]].write(0, b"newer")
    model.create("log/b")
    model.rename("log/b", "log/c")
    by_chance = {model.crash_image(Random(seed)) for seed in range(500)}
    assert by_chance == model.crash_images()
