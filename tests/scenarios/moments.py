"""Time in the hand of a test: a monotonic clock that is moved by saying so, and a wall clock that may jump as well."""

BEGINNING_MS = 1_790_000_000_000


class Clock:
    """Both clocks of a process; the wall clock shows the monotonic time since the beginning, and what it has jumped."""

    def __init__(self) -> None:
        self._ms = 1_000_000
        self._jumped_ms = 0

    def monotonic_ms(self) -> int:
        """Return milliseconds that never go back."""
        return self._ms

    def wall_ms(self) -> int:
        """Return Unix time."""
        return BEGINNING_MS + self._ms + self._jumped_ms

    def advance(self, seconds: float) -> None:
        """Let time go by."""
        self._ms += round(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; no time goes by."""
        self._jumped_ms += round(seconds * 1000)
