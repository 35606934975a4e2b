"""The tally: what the operator and the public may ask about how fair and how full it has been.

Counted while records are applied, so that replay, followers and a restart count alike.
"""

from collections.abc import Mapping
from typing import Any

CAUSES_OF_OVERTAKING = ("returned", "readmitted", "unexplained")
CAUSES_OF_SKIPPING = ("absent", "unclaimed", "removed", "left")


class Tally:
    """Plain counts. `newest` is the highest number released so far, by priority level."""

    __slots__ = (
        "admitted",
        "manual",
        "newest",
        "overshoot",
        "overtaken",
        "peak_inside",
        "released",
        "skipped",
        "waited_ms",
    )

    def __init__(self) -> None:
        self.released = 0
        self.manual = 0
        self.admitted = 0
        self.waited_ms = 0
        self.overshoot = 0
        self.peak_inside = 0
        self.newest: dict[int, int] = {}
        self.overtaken = dict.fromkeys(CAUSES_OF_OVERTAKING, 0)
        self.skipped = dict.fromkeys(CAUSES_OF_SKIPPING, 0)

    def let_in(self, number: int, level: int, waited_ms: int, reason_for_being_late: str | None) -> None:
        """Count one release; a number below one of its level that went before was overtaken, for the reason given."""
        self.waited_ms += waited_ms
        newest = self.newest.get(level, 0)
        if number >= newest:
            self.newest[level] = number
        else:
            self.overtaken[reason_for_being_late or "unexplained"] += 1

    def fill(self, inside: int, cap: int | None) -> None:
        """Note how many are inside right after a release."""
        self.peak_inside = max(self.peak_inside, inside)
        if cap is not None:
            self.overshoot = max(self.overshoot, inside - cap)

    def dump(self) -> dict[str, Any]:
        """Return all counts as plain values."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"newest": dict(self.newest), "overtaken": dict(self.overtaken), "skipped": dict(self.skipped)}

    def load(self, counts: Mapping[str, Any]) -> None:
        """Take up dumped counts."""
        for name in self.__slots__:
            setattr(self, name, counts[name])
