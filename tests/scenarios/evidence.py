"""What a run leaves behind for the history checker, and the verdict it comes to.

Times are monotonic and of one process. `sent_s` is the first attempt of an operation and `answered_s` the moment
its answer was complete, so "A was answered before B was sent" holds across retries and restarts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

LIVE = frozenset(("lobby", "waiting", "parked", "ready", "active"))
INSIDE = frozenset(("ready", "active"))
ENDED = frozenset(("left", "completed", "expired", "removed"))
# Operations that are answered with a place, as of the answer's version.
SHOWING = frozenset(("join", "position", "heartbeat", "accept", "extend_claim"))
# Operations that end a place, and the statuses that keep their word.
ENDING: Mapping[str, frozenset[str]] = {
    "leave": ENDED,
    "complete": frozenset(("completed",)),
    "remove": frozenset(("removed",)),
}
READING = frozenset(("position", "heartbeat"))
KINDS_OF_FAULT = (
    "lost",
    "duplicated",
    "reordered",
    "resurrected",
    "skipped",
    "misplaced",
    "cut_short",
    "beyond_limit",
    "over_cap",
    "over_rate",
    "epoch",
    "went_back",
    "wrong_rank",
    "wrong_status",
    "redeemed_twice",
    "changed_answer",
    "dead_pass",
    "outlived",
    "generation",
    "old_token",
    "banned",
    "turned_away",
    "diverged",
)

Fault = tuple[str, str]


class Limits(msgspec.Struct):
    """The settings that the checker holds a run to."""

    max_active: int | None = None
    batch_size: int = 100
    batch_interval_s: int = 10
    safety_margin: int = 0
    priority_boost: int = 1000
    presence_timeout_s: int = 60
    claim_window_s: int = 120
    claim_max_s: int = 1200
    session_ttl_s: int = 600
    session_max_s: int = 3600
    grace_s: int = 600


class LogLine(msgspec.Struct):
    """One record as exported; fields a kind does not have are left at their defaults."""

    lsn: int
    kind: str
    at_ms: int = 0
    epoch: int = 0
    gap: int = 0
    arrival: int = 0
    key: int = 0
    user_id: str = ""
    level: int = 0
    size: int = 1
    numbers: list[int] = []
    last_seen_ms: list[int] = []
    manual: bool = False
    request: str | None = None
    until_ms: int = 0
    limit_ms: int = 0
    jti: str = ""
    cause: str = ""
    late: bool = False
    generation: int = 0
    seed: str = ""
    beacon: str | None = None
    count: int = 0
    settings: Limits | None = None


class Entry(NamedTuple):
    """One operation of one client. `answered_s` is None when no answer came: its effect is unknown.

    `op` is one of SHOWING or ENDING, redeem and extend (the site's), admit, remove or release; a release's `number` is
    how many it let in, under its `key` where it has one. `generation` is that of the token that was shown (an accept's
    is that of the token it handed out, or would have), `jti` names the pass that was handed out or redeemed, `answer`
    is all that a redeem was told, and `refusal` the code where the operation was refused.
    """

    client: int
    op: str
    sent_s: float
    answered_s: float | None
    user_id: str = ""
    key: str = ""
    number: int = 0
    arrival: int = 0
    status: str = ""
    position: int | None = None
    epoch: int | None = None
    version: int | None = None
    generation: int = 0
    jti: str = ""
    answer: str = ""
    refusal: str = ""


class FinalPlace(NamedTuple):
    """One place as the daemon shows it at the end."""

    user_id: str
    number: int
    status: str


class Observed(NamedTuple):
    """How many had been released automatically, as one look at the counts told."""

    sent_s: float
    answered_s: float
    released: int


@dataclass(slots=True)
class Evidence:
    """Everything a run leaves behind. `epochs` are those the daemon told, in the order of its lives."""

    entries: Sequence[Entry]
    log: Sequence[LogLine]
    final: Mapping[int, FinalPlace]
    epochs: Sequence[int] = ()
    observed: Sequence[Observed] = ()


@dataclass(slots=True)
class Report:
    """The verdict: how many changes were acknowledged, and every fault by its kind."""

    acknowledged: int
    joins: int
    faults: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS_OF_FAULT})

    def count(self, kind: str) -> int:
        """Return how many faults of a kind were found."""
        return len(self.faults[kind])

    @property
    def ok(self) -> bool:
        """Return whether nothing was found."""
        return not any(self.faults.values())

    def found(self) -> set[str]:
        """Return the kinds of which something was found."""
        return {kind for kind, faults in self.faults.items() if faults}

    def summary(self) -> str:
        """Return one line for people."""
        counts = ", ".join(f"{kind.replace('_', ' ')} {len(faults)}" for kind, faults in self.faults.items())
        return f"acked {self.acknowledged} ({self.joins} joins), {counts}"

    def explain(self) -> str:
        """Return the summary and the first faults of each kind."""
        shown = [f"  {kind}: {fault}" for kind, faults in self.faults.items() for fault in faults[:5]]
        return "\n".join([self.summary(), *shown])
