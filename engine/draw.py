"""The lobby's draw: who gets which number at opening, so that anyone can recompute it (docs/draw.md).

Theory of operation. When a lobby opens, a secret of 32 bytes is derived from the draw key, the event and the id of
this draw, and its SHA-256, the commitment, is published; the secret itself is nowhere: it is derived again at
opening, and published then. The seed of the draw is the secret, or SHA-256(secret ‖ beacon) where a public beacon
was named beforehand. The arrivals that are in the lobby at opening, in order of SHA-256(seed ‖ uint64be(arrival)),
get the numbers 1…count. Nothing else goes in: not who somebody is, not when or how often they asked.

A digest over the drawn arrivals is published too, so that nobody can be taken out of the list or put into it later.

Drawing 100,000 at once would hold everybody else up for a fifth of a second. `Drawing` does it in steps: first it
hashes, and drops each digest into the bucket of its leading bits; then it sorts one small bucket after the other.
A digest is as good as random, so the buckets are about equally full whoever came.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from operator import lt
from struct import Struct, pack

ALGORITHM = "sha256-sort-v1"

DIGEST_BYTES = 32
BUCKET_SIZE = 64
MOST_BUCKET_BITS = 14  # more lists than this take longer to make than one step may

_ARRIVAL = Struct(">Q")


def secret_of(key: bytes, event_id: str, draw_id: str) -> bytes:
    """Return the 32 secret bytes of one draw: HMAC-SHA256(key, event_id ‖ 0 ‖ draw_id).

    `draw_id` must be new for every lobby: with an id used twice, the second draw would be known beforehand.
    """
    return hmac.digest(key, event_id.encode() + b"\0" + draw_id.encode(), "sha256")


def commitment_of(secret: bytes) -> str:
    """Return what is published before the sale: SHA-256 of the secret, in hex."""
    return hashlib.sha256(secret).hexdigest()


def mixed(secret: bytes, beacon: str | None) -> bytes:
    """Return the seed that decides the order: the secret, or SHA-256(secret ‖ beacon) where there is a beacon."""
    return secret if beacon is None else hashlib.sha256(secret + beacon.encode()).digest()


def entries_digest(arrivals: Iterable[int]) -> str:
    """Return what binds the list of the drawn: SHA-256 over uint64be of each arrival, ascending, in hex.

    In one go: 5 ms for 100,000. Where that is too long, there is `Drawing.entries_sha256`.
    """
    ascending = sorted(arrivals)
    return hashlib.sha256(pack(f">{len(ascending)}Q", *ascending)).hexdigest()


def order(seed: bytes, arrivals: Iterable[int]) -> list[int]:
    """Return the arrivals in the order of their numbers, in one go; `seed` as `mixed` gives it. O(n log n).

    >>> order(bytes(32), [1, 2, 3, 4])
    [1, 3, 4, 2]
    """
    return sorted(arrivals, key=lambda arrival: sort_key(seed, arrival))


class Drawing:
    """A draw under way, in steps of bounded work; gives what `order` gives.

    `seed` is what `mixed` returned; `arrivals` holds no arrival twice, and is not to be changed before the end.

    A unit of work is an arrival hashed or an arrival numbered, O(1) and about 1 µs either way; the sort of a bucket
    (64 digests on average, 20 µs) counts as none. A draw of n takes 2n units, and O(n / 64) to make. Measured with the
    collector off, as in the daemon, on 2 cores with CPython 3.11: 100,000 arrivals take 0.17 s in 200 steps of 1,000,
    the longest 1.5 ms, and 0.3 ms to make; 1,000,000 take 1.9 s, the longest step 1.5 ms, and 2.7 ms to make.

    >>> drawing = Drawing(bytes(32), [1, 2, 3, 4])
    >>> drawing.step(4), drawing.step(3), drawing.done
    ([], [(1, 1), (3, 2), (4, 3)], False)
    >>> drawing.step(3), drawing.done
    ([(2, 4)], True)
    """

    def __init__(self, seed: bytes, arrivals: Sequence[int]) -> None:
        self._seed = seed
        self._arrivals = arrivals
        bits = min((len(arrivals) // BUCKET_SIZE).bit_length(), MOST_BUCKET_BITS)
        self._shift = 16 - bits
        self._buckets: list[list[bytes]] = [[] for _ in range(1 << bits)]
        self._list_digest = hashlib.sha256()
        self._is_ascending = True
        self._greatest = 0
        self._hashed = 0
        self._numbered = 0
        self._next_bucket = 0
        self._sorted: list[bytes] = []  # what is left of the bucket being numbered, the last first
        self._last = b""

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def done(self) -> bool:
        """Whether every arrival has its number."""
        return self._numbered == len(self._arrivals)

    @property
    def entries_sha256(self) -> str:
        """What `entries_digest` gives for the arrivals, once all are hashed; O(1) if they were given ascending."""
        assert self._hashed == len(self._arrivals), "not all arrivals are hashed yet"
        return self._list_digest.hexdigest() if self._is_ascending else entries_digest(self._arrivals)

    def step(self, limit: int) -> list[tuple[int, int]]:
        """Do at most `limit` units of work; return the next (arrival, number), in order of number.

        The first n units only hash and return nothing; then every step returns `limit` pairs, the last one fewer.
        """
        assert limit > 0, "a step without work would never end"
        hashed = self._hash(limit)
        return self._number(limit - hashed)

    def _hash(self, limit: int) -> int:
        """Put the next arrivals, `limit` of them if there are as many, into their buckets; returns how many."""
        seed, shift, buckets = self._seed, self._shift, self._buckets
        taken = self._arrivals[self._hashed : self._hashed + limit]
        for arrival in taken:
            key = sort_key(seed, arrival)
            buckets[(key[0] << 8 | key[1]) >> shift].append(key)
        self._list(taken)
        self._hashed += len(taken)
        return len(taken)

    def _list(self, taken: Sequence[int]) -> None:
        """Take the next arrivals into the digest of the list, which holds as long as they come ascending."""
        chain = (self._greatest, *taken)
        self._is_ascending = self._is_ascending and all(map(lt, chain, taken))
        self._greatest = chain[-1]
        self._list_digest.update(pack(f">{len(taken)}Q", *taken))

    def _number(self, limit: int) -> list[tuple[int, int]]:
        drawn: list[tuple[int, int]] = []
        while len(drawn) < limit and not self.done:
            if not self._sorted:
                self._sort_next_bucket()
                continue
            key = self._sorted.pop()
            assert key > self._last, "an arrival is in the draw twice"
            self._last = key
            self._numbered += 1
            drawn.append((int.from_bytes(key[DIGEST_BYTES:]), self._numbered))
        return drawn

    def _sort_next_bucket(self) -> None:
        self._sorted = self._buckets[self._next_bucket]
        self._sorted.sort(reverse=True)
        self._buckets[self._next_bucket] = []
        self._next_bucket += 1


def sort_key(seed: bytes, arrival: int) -> bytes:
    """Return what arrivals are ordered by: the digest, and behind it the arrival itself, so that no two are equal."""
    number = _ARRIVAL.pack(arrival)
    return hashlib.sha256(seed + number).digest() + number
