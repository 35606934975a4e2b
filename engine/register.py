"""The register: everyone who ever joined one event, one row per arrival, kept in columns.

Row `arrival` holds who it is, the order key, the status, its marks (how a place ended, how often it was let in), the
proof of holding, when they joined and when it ended. Columns of machine integers instead of a row object each keep a
waiting visitor under 300 bytes and leave the garbage collector nothing to walk. All columns but `status` and `marks`
only grow at the end (or are replaced as a whole, by a draw), so that a point-in-time view of a million rows costs one
copy of two million bytes. What else changes in place is written again by the records that come after such a view.

Arrival and queue number are the same unless a lobby was drawn: `drawn` then tells whose a number is.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

from engine.line import NUMBER_BITS, number_of

STATUSES = ("none", "lobby", "waiting", "parked", "ready", "active", "completed", "expired", "left", "removed")
NONE, LOBBY, WAITING, PARKED, READY, ACTIVE, COMPLETED, EXPIRED, LEFT, REMOVED = range(len(STATUSES))
LIVE = frozenset((LOBBY, WAITING, PARKED, READY, ACTIVE))

# Marks of a row: three bits for the cause of its end, then facts about its way.
CAUSES = (None, "absent", "unclaimed", "session", "removed")
CAUSE_BITS = 0b111
REDEEMED = 1 << 3
ONE_RELEASE = 1 << 4
RELEASE_BITS = 0b11 << 4
STEPPED_OVER = 1 << 6
READMITTED = 1 << 7

ROWS_PER_PART = 4_000
DIGEST_MASK = 2**64 - 1
_WEIGHT = (0, 3, 5, 7, 11, 13, 17, 19, 23, 29)
_WEIGHT_OF_MARKS = 31


def lobby_key(arrival: int) -> int:
    """Return the order key of somebody in the lobby, who has no number yet."""
    return arrival << NUMBER_BITS


class Register:
    """Rows 1…`len`; row 0 is never used. Everything here is O(1) unless it says otherwise."""

    __slots__ = (
        "_digest",
        "by_user",
        "counts",
        "drawn",
        "ended_ms",
        "joined_ms",
        "keys",
        "marks",
        "proofs",
        "status",
        "user_ids",
    )

    def __init__(self) -> None:
        self.user_ids: list[str] = [""]
        self.keys = array("Q", (0,))
        self.proofs = array("Q", (0,))
        self.joined_ms = array("Q", (0,))
        self.ended_ms = array("Q", (0,))
        self.status = bytearray(1)
        self.marks = bytearray(1)
        self.drawn = array("Q", (0,))
        self.by_user: dict[str, int] = {}
        self.counts = [0] * len(STATUSES)
        self._digest = 0

    def __len__(self) -> int:
        """Return the last arrival given out."""
        return len(self.user_ids) - 1

    def add(self, user_id: str, key: int, status: int, proof: int, now_ms: int) -> int:
        """Append a row and return its arrival; the newest row of a user_id is the one `by_user` finds."""
        arrival = len(self.user_ids)
        self.user_ids.append(user_id)
        self.keys.append(key)
        self.proofs.append(proof)
        self.joined_ms.append(now_ms)
        self.ended_ms.append(0)
        self.status.append(status)
        self.marks.append(0)
        self.by_user[user_id] = arrival
        self.counts[status] += 1
        self._digest += key * _WEIGHT[status]
        return arrival

    def skip(self, count: int) -> None:
        """Leave a gap of so many arrivals that nobody here holds; O(count)."""
        self.user_ids += [""] * count
        self.status += bytes(count)
        self.marks += bytes(count)
        for column in (self.keys, self.proofs, self.joined_ms, self.ended_ms):
            column.extend(array("Q", bytes(8 * count)))
        self.counts[NONE] += count

    def fill(self, arrival: int, user_id: str, key: int, status: int, now_ms: int) -> None:
        """Put somebody into a row of a gap."""
        self.user_ids[arrival] = user_id
        self.keys[arrival] = key
        self.joined_ms[arrival] = now_ms
        self.by_user[user_id] = arrival
        self.set(arrival, status, READMITTED)

    def set(self, arrival: int, status: int, marks: int) -> None:
        """Give a row a status and marks."""
        old = self.status[arrival]
        self._digest += self.keys[arrival] * (_weight(status, marks) - _weight(old, self.marks[arrival]))
        self.status[arrival] = status
        self.marks[arrival] = marks
        self.counts[old] -= 1
        self.counts[status] += 1

    def move(self, arrival: int, status: int) -> None:
        """Give a row another status."""
        self.set(arrival, status, self.marks[arrival])

    def begin_draw(self, count: int) -> None:
        """Make room for the numbers 1…`count` of a draw; O(n), two block copies."""
        self.keys = array("Q", self.keys)
        self.drawn = array("Q", bytes(8 * (count + 1)))

    def number(self, arrival: int, number: int, key: int) -> None:
        """Give a row the number it drew and the key that comes of it."""
        self._digest += (key - self.keys[arrival]) * _weight(self.status[arrival], self.marks[arrival])
        self.keys[arrival] = key
        self.drawn[number] = arrival

    def arrival_of(self, number: int) -> int:
        """Return whose a number is; 0 when nobody has it."""
        if number < len(self.drawn):
            return self.drawn[number] if self.status[self.drawn[number]] != NONE else 0
        known = number < len(self.user_ids) and self.status[number] != NONE
        return number if known and number_of(self.keys[number]) == number else 0

    def releases(self, arrival: int) -> int:
        """Return how often a place was let in."""
        return (self.marks[arrival] & RELEASE_BITS) // ONE_RELEASE

    def with_status(self, status: int) -> list[int]:
        """Return all arrivals of one status; O(n)."""
        return [arrival for arrival, its in enumerate(self.status) if its == status and arrival]

    def digest(self) -> int:
        """Return the running digest: a sum mod 2⁶⁴ over key and status of every row."""
        return self._digest & DIGEST_MASK

    def capture(self) -> Iterator[object]:
        """Return the rows as they are now, to be read at leisure and from another thread, in slices.

        Each part is `[first arrival, user_ids, status, marks, keys, proofs, joined_ms, ended_ms]`, columns as
        little-endian bytes.
        """
        columns = (self.keys, self.proofs, self.joined_ms, self.ended_ms)
        return _parts(self.user_ids, bytes(self.status), bytes(self.marks), columns)

    def load(self, part: Sequence[object]) -> None:
        """Append one captured part; parts come in order. Call `settle` after the last one."""
        first, user_ids, status, marks, *columns = part
        assert first == len(self.user_ids) and isinstance(user_ids, list | tuple)
        assert isinstance(status, bytes) and isinstance(marks, bytes)
        self.user_ids += user_ids
        self.status += status
        self.marks += marks
        for column, data in zip((self.keys, self.proofs, self.joined_ms, self.ended_ms), columns, strict=True):
            assert isinstance(data, bytes)
            column.extend(from_little_endian(data))

    def settle(self) -> None:
        """Rebuild what is derived from the columns after loading; O(n)."""
        self.by_user = dict(zip(islice(self.user_ids, 1, None), range(1, len(self.user_ids)), strict=True))
        self.by_user.pop("", None)
        if any(marks & READMITTED for marks in self.marks):
            taken = sorted(range(len(self.user_ids)), key=lambda row: (self.joined_ms[row], self.status[row] in LIVE))
            self.by_user.update((self.user_ids[row], row) for row in taken if self.user_ids[row])
        self.counts = [self.status.count(status) for status in range(len(STATUSES))]
        self.counts[NONE] -= 1
        self._digest = self._sum()

    def _sum(self) -> int:
        rows = zip(self.keys, self.status, self.marks, strict=True)
        return sum(key * _weight(status, marks) for key, status, marks in rows)

    def keys_with(self, status: int) -> list[int]:
        """Return the order keys of all rows of one status, by arrival; O(n)."""
        return [key for key, its in zip(self.keys, self.status, strict=True) if its == status]

    def check(self) -> None:
        """Assert that columns, counts and the digest agree; O(n)."""
        columns = (self.keys, self.proofs, self.joined_ms, self.ended_ms, self.status, self.marks)
        lengths = {len(column) for column in columns}
        assert lengths == {len(self.user_ids)}, f"columns differ in length: {lengths}"
        counts = [self.status.count(status) for status in range(len(STATUSES))]
        counts[NONE] -= 1
        assert counts == self.counts, f"counts are {self.counts}, rows say {counts}"
        assert self._sum() & DIGEST_MASK == self.digest(), "the running digest is not that of the rows"
        for number, arrival in enumerate(self.drawn):
            is_right = self.status[arrival] == NONE or number_of(self.keys[arrival]) == number
            assert is_right, f"arrival {arrival} did not draw {number}"


def _weight(status: int, marks: int) -> int:
    return _WEIGHT[status] + _WEIGHT_OF_MARKS * marks


def _parts(user_ids: list[str], status: bytes, marks: bytes, columns: Sequence["array[int]"]) -> Iterator[object]:
    end = len(status)
    for first in range(1, end, ROWS_PER_PART):
        stop = min(first + ROWS_PER_PART, end)
        tail = [little_endian(column[first:stop]) for column in columns]
        yield [first, user_ids[first:stop], status[first:stop], marks[first:stop], *tail]


def little_endian(column: "array[int]") -> bytes:
    """Return a column as bytes that mean the same on every machine."""
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def from_little_endian(data: bytes) -> "array[int]":
    """Return the column that bytes hold."""
    column = array("Q")
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column
