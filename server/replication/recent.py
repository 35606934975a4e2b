"""The newest pieces of the log in memory, so that a follower that keeps up costs no reading."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from snapshots.segments import LogPosition
from snapshots.shipping import Piece


class Recent:
    """Pieces in order, about `limit_bytes` of them; also how much was ever added, and when (for the lag)."""

    def __init__(self, end: LogPosition, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: deque[Piece] = deque()
        self._size_bytes = 0
        self._added = 0
        self._numbers = {_place(end): 0}
        self._starts: deque[tuple[int, int]] = deque([_place(end)])
        self.end = end
        self.total_bytes = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Take what became durable; forgets the oldest."""
        for piece in pieces:
            self._added += 1
            self._pieces.append(piece)
            self._numbers[_place(piece.end)] = self._added
            self._starts.append(_place(piece.end))
            self._size_bytes += len(piece.data)
            self.total_bytes += len(piece.data)
            self.end = piece.end
        while self._size_bytes > self._limit_bytes and len(self._pieces) > 1:
            self._size_bytes -= len(self._pieces.popleft().data)
            del self._numbers[self._starts.popleft()]

    def after(self, position: LogPosition, limit_bytes: int) -> list[Piece] | None:
        """Return the pieces behind a position, up to a size (one at least); None where that is no longer known."""
        number = self._numbers.get(_place(position))
        if number is None:
            return None
        due = [*islice(reversed(self._pieces), self._added - number)]
        chosen, size_bytes = [], 0
        while due and size_bytes < limit_bytes:
            chosen.append(due.pop())
            size_bytes += len(chosen[-1].data)
        return chosen


def _place(position: LogPosition) -> tuple[int, int]:
    return position.sequence, position.offset
