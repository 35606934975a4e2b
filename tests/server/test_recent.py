"""The newest pieces in memory."""

from server.replication.recent import Recent
from snapshots.segments import LogPosition
from snapshots.shipping import Piece

BEGIN = LogPosition(0, 0, 1, 64)


def piece(offset: int, size_bytes: int = 100, sequence: int = 1) -> Piece:
    return Piece(LogPosition(offset, offset, sequence, offset), bytes(size_bytes))


def test_what_is_behind_a_place_is_returned_in_order() -> None:
    recent = Recent(BEGIN, 10_000)
    pieces = [piece(164), piece(264), piece(364)]
    recent.add(pieces)
    assert recent.after(BEGIN, 10_000) == pieces
    assert recent.after(pieces[0].end, 10_000) == pieces[1:]
    assert recent.after(pieces[2].end, 10_000) == []
    assert recent.end == pieces[2].end


def test_at_most_so_many_bytes_come_at_once_and_one_piece_at_least() -> None:
    recent = Recent(BEGIN, 10_000)
    recent.add([piece(164), piece(264), piece(364)])
    assert [one.end.offset for one in recent.after(BEGIN, 150) or []] == [164, 264]
    assert [one.end.offset for one in recent.after(BEGIN, 1) or []] == [164]


def test_what_was_forgotten_is_not_known_and_has_to_be_read() -> None:
    recent = Recent(BEGIN, 250)
    recent.add([piece(164), piece(264), piece(364), piece(464)])
    assert recent.after(BEGIN, 10_000) is None
    assert [one.end.offset for one in recent.after(LogPosition(264, 264, 1, 264), 10_000) or []] == [364, 464]
    assert recent.total_bytes == 400


def test_a_place_of_another_segment_is_another_place() -> None:
    recent = Recent(BEGIN, 10_000)
    recent.add([piece(164), piece(64, 64, 2), piece(164, 100, 2)])
    assert [one.end.sequence for one in recent.after(LogPosition(0, 0, 2, 64), 10_000) or []] == [2]
    assert recent.after(LogPosition(0, 0, 3, 64), 10_000) is None
