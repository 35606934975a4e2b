"""Deadlines: what runs out when. Claim windows, sessions and the grace of the parked are one of these each.

A heap of ints, `at_ms · 2³² + arrival`, beside a dict that holds what is true: setting a deadline anew only adds to the
heap, and what the dict does not confirm is dropped when it comes up. Times are event time.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush

_ARRIVAL_BITS = 32
_ARRIVAL_MASK: int = 2**_ARRIVAL_BITS - 1


class Deadlines:
    """One deadline an arrival at most; `at_ms` maps arrival → deadline."""

    __slots__ = ("_heap", "at_ms")

    def __init__(self) -> None:
        self.at_ms: dict[int, int] = {}
        self._heap: list[int] = []

    def set(self, arrival: int, at_ms: int) -> None:
        """Give an arrival a deadline, in place of the one it may have; O(log n)."""
        self.at_ms[arrival] = at_ms
        heappush(self._heap, at_ms << _ARRIVAL_BITS | arrival)

    def clear(self, arrival: int) -> None:
        """Take an arrival's deadline away; O(1)."""
        self.at_ms.pop(arrival, None)

    def due(self, now_ms: int) -> int | None:
        """Return the arrival whose deadline came first, None when none has come; O(log n) amortised."""
        heap, at_ms = self._heap, self.at_ms
        while heap and heap[0] >> _ARRIVAL_BITS <= now_ms:
            arrival = heap[0] & _ARRIVAL_MASK
            if at_ms.get(arrival) == heap[0] >> _ARRIVAL_BITS:
                return arrival
            heappop(heap)
        return None

    def load(self, items: Iterable[tuple[int, int]]) -> None:
        """Set many at once; O(n)."""
        self.at_ms.update(items)
        self._heap = [at_ms << _ARRIVAL_BITS | arrival for arrival, at_ms in self.at_ms.items()]
        heapify(self._heap)

    def restart(self, at_ms: int) -> None:
        """Give everybody who has a deadline this one; O(n)."""
        self.load(list(dict.fromkeys(self.at_ms, at_ms).items()))

    def forget(self) -> None:
        """Drop all."""
        self.at_ms, self._heap = {}, []
