"""Pieces of the log: read back as they were written, found again by position, verified without a disk."""

from dataclasses import astuple
from pathlib import Path

import pytest

from engine.errors import Damaged, Refused
from snapshots.disk_model import Image
from snapshots.journal import Journal, JournalOptions
from snapshots.memory_storage import MemoryStorage
from snapshots.segments import LogPosition
from snapshots.shipping import (
    ChainCheck,
    Piece,
    find_boundary,
    is_in_log,
    read_pieces,
    records_in,
    segment_starts,
)
from snapshots.storage import DiskStorage, Storage
from snapshots.survey import segment_names
from snapshots.wal import SEGMENT_MAGIC, FrameHeader, SegmentHeader, sequence_of
from tests.snapshots.pair import beginning
from tests.snapshots.scenario import SMALL, Life, joined

COUNTS = (1, 3, 14, 110, 2, 120)


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else DiskStorage(tmp_path)


async def a_life(*counts: int) -> tuple[Life, list[Piece]]:
    """Return a life and the pieces its journal has told of."""
    life = Life(MemoryStorage())
    await life.open()
    told: list[Piece] = []
    life.journal.on_durable = told.extend
    await life.commit(*(counts or COUNTS))
    return life, told


def all_pieces(life: Life, limit_bytes: int = 1 << 30) -> list[Piece]:
    return read_pieces(life.storage, beginning(life.journal.log_id), limit_bytes, life.journal.position)


# What a journal tells


async def test_a_journal_tells_of_every_piece_once_it_is_durable_and_before_anybody_is_answered(
    storage: Storage,
) -> None:
    journal = Journal.open(storage, JournalOptions(**SMALL))
    first = journal.position
    told: list[Piece] = []
    order: list[str] = []

    def on_durable(pieces: list[Piece]) -> None:
        told.extend(pieces)
        assert journal.durable_lsn == pieces[-1].end.lsn
        assert journal.position == pieces[-1].end
        order.append("told")

    journal.on_durable = on_durable  # type: ignore[assignment]
    await journal.start()
    for count in (1, 40, 200):
        last_lsn = journal.last_lsn
        waiter = journal.when_durable(journal.append([joined(last_lsn + n + 1, "user") for n in range(count)]))
        assert waiter is not None
        waiter.add_done_callback(lambda _: order.append("answered"))
        await waiter
    await journal.close()
    assert order[:6] == ["told", "answered"] * 3
    assert told == read_pieces(storage, first, 1 << 30)
    assert sum(piece.data.startswith(SEGMENT_MAGIC) for piece in told) >= 1
    assert journal.newest_snapshot() is None


async def test_the_newest_snapshot_is_told_by_name() -> None:
    life, _ = await a_life()
    await life.snapshot()
    await life.commit(1)
    await life.snapshot()
    assert life.journal.newest_snapshot() == "snapshots/00000000000000000251.snap"


# Reading


async def test_pieces_are_the_log_byte_for_byte() -> None:
    life, told = await a_life()
    pieces = all_pieces(life)
    assert pieces[1:] == told
    by_segment: dict[int, bytes] = {}
    for piece in pieces:
        by_segment[piece.end.sequence] = by_segment.get(piece.end.sequence, b"") + piece.data
        assert len(by_segment[piece.end.sequence]) == piece.end.offset
    for name in segment_names(life.storage):
        copied = by_segment[sequence_of(name)]
        assert life.storage.read(name, 0, len(copied)) == copied
        assert not life.storage.read(name, len(copied), 1 << 20).strip(b"\0")
    assert len(by_segment) > 2


@pytest.mark.parametrize("limit_bytes", [0, 1, 100, 1500, 5000])
async def test_reading_goes_on_behind_any_piece(limit_bytes: int) -> None:
    life, _ = await a_life()
    whole = all_pieces(life)
    got: list[Piece] = []
    place = beginning(life.journal.log_id)
    while batch := read_pieces(life.storage, place, max(1, limit_bytes), life.journal.position):
        assert len(batch) == 1 or sum(len(piece.data) for piece in batch[:-1]) < limit_bytes
        got += batch
        place = batch[-1].end
    assert got == whole


async def test_nothing_is_read_behind_what_is_durable() -> None:
    life, told = await a_life()
    for until in (told[0].end, told[2].end, told[-2].end):
        assert read_pieces(life.storage, beginning(life.journal.log_id), 1 << 30, until)[-1].end == until
        assert read_pieces(life.storage, until, 1 << 30, until) == []


async def test_at_the_end_there_is_nothing_yet_and_later_there_is() -> None:
    life, _ = await a_life(1, 2)
    end = life.journal.position
    assert read_pieces(life.storage, end, 1 << 20) == []
    await life.commit(3)
    (piece,) = read_pieces(life.storage, end, 1 << 20)
    assert piece.end == life.journal.position


async def test_a_frame_that_is_not_whole_is_not_read() -> None:
    life, told = await a_life(1, 2, 3)
    name = segment_names(life.storage)[-1]
    image = life.storage.image()
    for at in range(told[-2].end.offset, told[-1].end.offset, 9):
        files = dict(image.files)
        files[name] = files[name][:at] + bytes(len(files[name]) - at)
        torn = MemoryStorage(Image(image.folders, tuple(sorted(files.items()))))
        assert read_pieces(torn, beginning(life.journal.log_id), 1 << 20)[-1].end == told[-2].end
        assert read_pieces(torn, told[-2].end, 1 << 20) == []


async def a_pruned_life() -> Life:
    life, _ = await a_life()
    for _ in range(3):
        await life.commit(120)
        await life.snapshot()
    assert sequence_of(segment_names(life.storage)[0]) > 1
    return life


async def test_a_position_that_was_pruned_or_never_was_is_refused() -> None:
    life = await a_pruned_life()
    end = life.journal.position
    first = segment_starts(life.storage)[-1]
    never = [
        beginning(life.journal.log_id),
        LogPosition(first.lsn - 5, 1, first.sequence, 700),
        LogPosition(first.lsn - 5, 1, first.sequence - 1, 700),
        LogPosition(end.lsn, end.chain, end.sequence + 1, 64),
        LogPosition(end.lsn, end.chain, end.sequence, end.offset + 100_000),
        LogPosition(end.lsn - 300, 5, end.sequence - 2, 200),
    ]
    for position in never:
        assert not is_in_log(life.storage, position)
        with pytest.raises(Refused, match="no place to go on") as refused:
            read_pieces(life.storage, position, 1 << 20)
        assert (refused.value.code, refused.value.reason) == ("gone", "pruned")


async def test_what_is_behind_the_end_of_a_pruned_segment_can_be_read() -> None:
    life = await a_pruned_life()
    first = segment_starts(life.storage)[-1]
    assert first.offset == 0
    pieces = read_pieces(life.storage, first, 1 << 30)
    assert pieces[0].data.startswith(SEGMENT_MAGIC)
    assert pieces[-1].end == life.journal.position
    assert is_in_log(life.storage, first)


# Finding a place again


async def test_exactly_the_places_between_pieces_are_in_the_log() -> None:
    life, _ = await a_life()
    pieces = all_pieces(life)
    for piece in pieces:
        lsn, chain, sequence, offset = astuple(piece.end)
        assert is_in_log(life.storage, piece.end)
        assert find_boundary(life.storage, lsn, chain, sequence) == piece.end
        for other in (
            LogPosition(lsn + 1, chain, sequence, offset),
            LogPosition(lsn, chain ^ 1, sequence, offset),
            LogPosition(lsn, chain, sequence, offset + 1),
            LogPosition(lsn, chain, sequence + 1, offset),
        ):
            assert not is_in_log(life.storage, other)


async def test_a_segment_start_is_the_end_of_the_one_before() -> None:
    life, _ = await a_life()
    starts = segment_starts(life.storage)
    assert starts[-1] == beginning(life.journal.log_id)
    assert [start.sequence for start in starts] == list(range(len(starts) - 1, -1, -1))
    for start in starts[:-1]:
        assert is_in_log(life.storage, start)
        (header,) = read_pieces(life.storage, start, 1)
        assert header.end == LogPosition(start.lsn, start.chain, start.sequence + 1, 64)


# Verifying


async def test_a_check_follows_the_whole_chain_from_anywhere() -> None:
    life, _ = await a_life()
    pieces = all_pieces(life)
    headers = [at for at, piece in enumerate(pieces) if piece.data.startswith(SEGMENT_MAGIC)]
    for first in headers:
        check = ChainCheck.anywhere()
        assert check.position.sequence == 0
        for piece in pieces[first:]:
            check.take(piece.data)
            assert check.position == piece.end
        assert (check.epoch, check.log_id) == (life.journal.epoch, life.journal.log_id)
        assert check.stated_durable_lsn < life.journal.durable_lsn


async def test_the_records_of_a_frame_come_back() -> None:
    life, told = await a_life()
    check = ChainCheck(told[0].end, life.journal.epoch, life.journal.log_id)
    users: list[str] = []
    for piece in told[1:]:
        header = check.take(piece.data)
        if isinstance(header, FrameHeader):
            users += [record.user_id for record in records_in(piece.data, header)]  # type: ignore[union-attr]
    assert users == life.history[told[0].end.lsn :]


async def test_no_flipped_bit_gets_past_a_check() -> None:
    life, _ = await a_life()
    pieces = [piece.data for piece in all_pieces(life)]
    check = ChainCheck.anywhere()
    for piece in pieces:
        before = check.position
        for at in range(0, len(piece), 1 if len(piece) < 300 else 37):
            bad = piece[:at] + bytes([piece[at] ^ 1 << at % 8]) + piece[at + 1 :]
            with pytest.raises(Damaged):
                check.copy().take(bad)
            with pytest.raises(Damaged):
                check.take(bad)
        assert check.position == before
        check.take(piece)
    assert check.position == life.journal.position


async def test_a_lost_repeated_or_foreign_piece_does_not_get_past_a_check() -> None:
    life, _ = await a_life()
    other, _ = await a_life()
    pieces = [piece.data for piece in all_pieces(life)]
    foreign = [piece.data for piece in all_pieces(other)]
    check = ChainCheck.anywhere()
    with pytest.raises(Damaged, match="before the header"):
        check.take(pieces[1])
    for at, piece in enumerate(pieces[:-1]):
        wrong = [piece + b"\0", piece[:-1], b""]
        wrong += [pieces[at - 1], foreign[at]] if at else []
        wrong += [] if piece.startswith(SEGMENT_MAGIC) else [pieces[at + 1]]
        for bad in wrong:
            with pytest.raises(Damaged):
                check.take(bad)
        check.take(piece)


async def test_an_epoch_that_falls_does_not_get_past_a_check() -> None:
    life, _ = await a_life(1)
    (segment, frame) = all_pieces(life)
    check = ChainCheck(segment.end, life.journal.epoch + 1, life.journal.log_id)
    with pytest.raises(Damaged, match="follows epoch"):
        check.take(frame.data)
    above = ChainCheck(beginning(life.journal.log_id), life.journal.epoch + 1, life.journal.log_id)
    with pytest.raises(Damaged, match="follows epoch"):
        above.take(segment.data)
    assert isinstance(ChainCheck.anywhere().take(segment.data), SegmentHeader)
