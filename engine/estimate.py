"""Wait estimates. The seed's rule, behind an interface that a better one can replace.

An estimator is fed every release in the order of the log, so that replay and followers estimate alike; it
holds no clock.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from engine.views import Estimate

DEFAULT_RATE_PER_MINUTE = 50.0
BUFFER = 1.2
BATCHES_KEPT = 20
BATCHES_AVERAGED = 11
BATCHES_FOR_CERTAINTY = 10


class Estimator(Protocol):
    """Anything that turns past releases into the wait at a position."""

    def observe(self, released: int, elapsed_ms: int) -> None:
        """Take in one batch: so many visitors were released `elapsed_ms` after the batch before (0: a part of it)."""

    def estimate(self, position: int) -> Estimate:
        """Return the estimate for a 1-based position; O(1)."""

    def rate_per_minute(self) -> float:
        """Return the recent rate of release."""

    def dump(self) -> list[list[int]]:
        """Return what `load` needs to go on from here."""

    def load(self, state: Sequence[Sequence[int]]) -> None:
        """Take up a dumped state."""


class MeanRateEstimator:
    """The mean of the recent release rates (seed, "Smart Wait Time Estimation").

    The last batches are kept newest first, 20 of them, and the rates of the first 11 averaged (the seed's
    `lrange 0 10`); 50 a minute when there is none; a buffer of 1.2 on top; confidence n/10, 1 at most. The
    band runs from the mean without the buffer to the buffered wait at the slowest recent rate.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque(maxlen=BATCHES_KEPT)
        self._settle()

    def observe(self, released: int, elapsed_ms: int) -> None:
        """Take in a batch; with `elapsed_ms` 0 it is a further slice of the newest one."""
        if elapsed_ms <= 0:
            if not self._batches:
                return
            before, elapsed_ms = self._batches.popleft()
            released += before
        self._batches.appendleft((released, elapsed_ms))
        self._settle()

    def _settle(self) -> None:
        rates = [released * 60_000 / elapsed_ms for released, elapsed_ms in self._batches][:BATCHES_AVERAGED]
        self._mean = sum(rates) / len(rates) if rates else DEFAULT_RATE_PER_MINUTE
        self._slowest = min(rates, default=DEFAULT_RATE_PER_MINUTE)
        self._mean_s, self._slowest_s = 60 / self._mean, 60 / self._slowest
        self._confidence = min(len(self._batches) / BATCHES_FOR_CERTAINTY, 1.0)

    def estimate(self, position: int) -> Estimate:
        ahead = position - 1
        wait_s = ahead * self._mean_s
        seconds, slow = int(wait_s * BUFFER), int(ahead * self._slowest_s * BUFFER)
        return Estimate(seconds, int(wait_s), slow if slow > seconds else seconds, self._confidence, None)

    def rate_per_minute(self) -> float:
        return self._mean

    def dump(self) -> list[list[int]]:
        return [list(batch) for batch in self._batches]

    def load(self, state: Sequence[Sequence[int]]) -> None:
        self._batches = deque(((released, elapsed_ms) for released, elapsed_ms in state), maxlen=BATCHES_KEPT)
        self._settle()
