"""Presence: who was heard of lately, so that nobody waits behind people who left.

Presence has a clock of its own, which advances with every word of anybody in the room, and by at most half the
presence timeout for one silence of everybody: while nobody at all is heard (the network in front of us is down)
it stands still, and nobody is taken for gone. A visitor is present while that clock has not run further than the
timeout since they were heard; a hidden tab is given more patience. Nothing of this is in the log: after a start or a
promotion everybody counts as just heard.
"""

from array import array

from engine.settings import Settings


class Presence:
    """Two columns by arrival: when each was heard, by the presence clock, and whether the tab was hidden; O(1)."""

    __slots__ = ("_clock_ms", "_heard_ms", "_hidden", "_seen_ms")

    def __init__(self) -> None:
        self._seen_ms = array("Q", (0,))
        self._hidden = bytearray(1)
        self._clock_ms = 0
        self._heard_ms = 0

    def add(self, now_ms: int, settings: Settings) -> None:
        """Append the next arrival, heard now."""
        if now_ms > self._heard_ms:
            self._advance(now_ms, settings)
        self._seen_ms.append(self._clock_ms)
        self._hidden.append(False)

    def hear(self, arrival: int, now_ms: int, settings: Settings, *, visible: bool = True) -> None:
        """Note that somebody was heard."""
        if now_ms > self._heard_ms:
            self._advance(now_ms, settings)
        self._seen_ms[arrival] = self._clock_ms
        self._hidden[arrival] = not visible

    def hear_everybody(self, count: int, now_ms: int) -> None:
        """Count `count` arrivals as just heard; O(n), a block fill."""
        self._heard_ms = now_ms
        self._seen_ms = array("Q", (self._clock_ms,)) * (count + 1)
        self._hidden = bytearray(count + 1)

    def is_present(self, arrival: int, settings: Settings) -> bool:
        """Return whether somebody counts as present."""
        timeout_s = settings.presence_timeout_hidden_s if self._hidden[arrival] else settings.presence_timeout_s
        return self._clock_ms - self._seen_ms[arrival] <= timeout_s * 1000

    def last_seen_ms(self, arrival: int, now_ms: int) -> int:
        """Return when somebody was heard last, for the record; later than that where a silence of all was cut short."""
        return max(0, min(now_ms, self._heard_ms) - (self._clock_ms - self._seen_ms[arrival]))

    def _advance(self, now_ms: int, settings: Settings) -> None:
        self._clock_ms += min(now_ms - self._heard_ms, settings.presence_timeout_s * 500)
        self._heard_ms = now_ms

    def check(self, count: int) -> None:
        """Assert that there is a row for each arrival."""
        assert len(self._seen_ms) == len(self._hidden) == count + 1, "presence has other rows than the register"
