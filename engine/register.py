"""The register: everyone who ever joined one event, one row per arrival, kept in columns.

Row `arrival` holds who it is, the order key, the status, the proof of holding and when they joined. Columns
of machine integers instead of a row object each keep a waiting visitor under 300 bytes and leave the garbage
collector nothing to walk. All columns but `status` only ever grow at the end, so that a point-in-time view
of a million rows costs one copy of a million bytes.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

STATUSES = ("none", "lobby", "waiting", "parked", "ready", "active", "completed", "expired", "left", "removed")
NONE, LOBBY, WAITING, PARKED, READY, ACTIVE, COMPLETED, EXPIRED, LEFT, REMOVED = range(len(STATUSES))
LIVE = frozenset((LOBBY, WAITING, PARKED, READY, ACTIVE))

ROWS_PER_PART = 4_000
DIGEST_MASK = 2**64 - 1
_WEIGHT = (0, 3, 5, 7, 11, 13, 17, 19, 23, 29)


class Register:
    """Rows 1…`len`; row 0 is never used. Everything here is O(1) unless it says otherwise."""

    __slots__ = ("_digest", "by_user", "counts", "joined_ms", "keys", "proofs", "seen_ms", "status", "user_ids")

    def __init__(self) -> None:
        self.user_ids: list[str] = [""]
        self.keys = array("Q", (0,))
        self.proofs = array("Q", (0,))
        self.joined_ms = array("Q", (0,))
        self.seen_ms = array("Q", (0,))
        self.status = bytearray(1)
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
        self.seen_ms.append(now_ms)
        self.status.append(status)
        self.by_user[user_id] = arrival
        self.counts[status] += 1
        self._digest += key * _WEIGHT[status]
        return arrival

    def skip(self, count: int) -> None:
        """Leave a gap of so many arrivals that nobody here holds; O(count)."""
        self.user_ids += [""] * count
        self.status += bytes(count)
        for column in (self.keys, self.proofs, self.joined_ms, self.seen_ms):
            column.extend(array("Q", bytes(8 * count)))
        self.counts[NONE] += count

    def move(self, arrival: int, status: int) -> None:
        """Give a row another status."""
        old = self.status[arrival]
        self.status[arrival] = status
        self.counts[old] -= 1
        self.counts[status] += 1
        self._digest += self.keys[arrival] * (_WEIGHT[status] - _WEIGHT[old])

    def digest(self) -> int:
        """Return the running digest: a sum mod 2⁶⁴ over key and status of every row."""
        return self._digest & DIGEST_MASK

    def hear_everybody(self, now_ms: int) -> None:
        """Count everybody as just heard, as after a start; O(n), a block fill."""
        self.seen_ms = array("Q", (now_ms,)) * len(self.user_ids)

    def capture(self) -> Iterator[object]:
        """Return the rows as they are now, to be read at leisure and from another thread, in slices.

        Each part is `[first arrival, user_ids, status, keys, proofs, joined_ms]`, columns as little-endian bytes.
        """
        return self._parts(len(self.user_ids), bytes(self.status))

    def _parts(self, end: int, status: bytes) -> Iterator[object]:
        for first in range(1, end, ROWS_PER_PART):
            stop = min(first + ROWS_PER_PART, end)
            columns = [_little_endian(column[first:stop]) for column in (self.keys, self.proofs, self.joined_ms)]
            yield [first, self.user_ids[first:stop], status[first:stop], *columns]

    def load(self, part: Sequence[object]) -> None:
        """Append one captured part; parts come in order. Call `settle` after the last one."""
        first, user_ids, status, *columns = part
        assert first == len(self.user_ids) and isinstance(user_ids, list | tuple) and isinstance(status, bytes)
        self.user_ids += user_ids
        self.status += status
        for column, data in zip((self.keys, self.proofs, self.joined_ms), columns, strict=True):
            assert isinstance(data, bytes)
            column.extend(_from_little_endian(data))

    def settle(self, now_ms: int) -> None:
        """Rebuild what is derived from the columns after loading; O(n)."""
        self.by_user = dict(zip(islice(self.user_ids, 1, None), range(1, len(self.user_ids)), strict=True))
        self.by_user.pop("", None)
        self.counts = [self.status.count(status) for status in range(len(STATUSES))]
        self.counts[NONE] -= 1
        self._digest = sum(key * _WEIGHT[status] for key, status in zip(self.keys, self.status, strict=True))
        self.hear_everybody(now_ms)

    def keys_with(self, status: int) -> list[int]:
        """Return the order keys of all rows of one status, by arrival; O(n)."""
        return [key for key, its in zip(self.keys, self.status, strict=True) if its == status]

    def check(self) -> None:
        """Assert that columns, counts and the digest agree; O(n)."""
        lengths = {len(self.keys), len(self.proofs), len(self.joined_ms), len(self.seen_ms), len(self.status)}
        assert lengths == {len(self.user_ids)}, f"columns differ in length: {lengths}"
        counts = [self.status.count(status) for status in range(len(STATUSES))]
        counts[NONE] -= 1
        assert counts == self.counts, f"counts are {self.counts}, rows say {counts}"
        digest = sum(key * _WEIGHT[status] for key, status in zip(self.keys, self.status, strict=True))
        assert digest & DIGEST_MASK == self.digest(), "the running digest is not that of the rows"


def _little_endian(column: "array[int]") -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _from_little_endian(data: bytes) -> "array[int]":
    column = array("Q")
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column
