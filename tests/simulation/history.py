"""What the clients of a simulated life were answered, and when: the only thing its judge believes."""

from dataclasses import dataclass, field
from typing import NamedTuple

NEVER_S = float("inf")


class Answered(NamedTuple):
    """What one question of one visitor came to.

    `sent_s` is when it was asked, `spoken_s` when the node let the answer go, `answered_s` when it arrived. `outcome`
    is "ok" or the code of a refusal, or "silence". `by` is the process, `role` its role then; `lsn` is the version of
    the answer. `alone`: the primary stood alone then, so its word rested on one disk.
    """

    visitor: str
    verb: str
    by: str
    role: str
    sent_s: float
    spoken_s: float
    answered_s: float
    outcome: str
    epoch: int = 0
    lsn: int = 0
    arrival: int = 0
    number: int = 0
    position: int | None = None
    status: str = ""
    is_stale: bool = False
    is_alone: bool = False


class Promotion(NamedTuple):
    """Somebody became primary of a new term; `from_lsn` is where the log of the term before ended for it.

    `is_lossy`: a person had it done without the old primary's word.
    """

    at_s: float
    node: str
    term: int
    from_lsn: int
    is_lossy: bool


@dataclass(slots=True)
class History:
    """Everything of one life that is judged, and a trace of it for people."""

    answers: list[Answered] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
