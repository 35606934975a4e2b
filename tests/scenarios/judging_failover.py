"""What a run of failovers comes to: how long each took, how many were answered rightly, and what was found.

Availability is that of an hour with one kill in it, by calculation: of the joins that were due, those were answered
rightly that had their place within a second of their moment, after at most one retry.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from tests.scenarios.client import PlaceReply
from tests.scenarios.flood import Flood, Join
from tests.scenarios.history import Entry, Evidence, FinalPlace, Report
from tests.scenarios.people import ADMIN
from tests.server.daemons import Daemon

FIRST_CLIENT = 1_000
PAGE = 1_000
RIGHT_WITHIN_S = 1.0
HOUR_S = 3600


@dataclass(slots=True)
class Failover:
    """One kill: the epoch before it, when it was, the first answer of a later epoch, and when both were there again."""

    epoch: int
    killed_s: float
    recovered_s: float | None = None
    next_epoch: int = 0
    whole_s: float | None = None

    @property
    def gap_s(self) -> float:
        """Return how long there was nobody who answered a join."""
        return float("inf") if self.recovered_s is None else self.recovered_s - self.killed_s


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    report: Report
    flood: Flood
    failovers: list[Failover]
    evidence: Evidence
    stale_reads: int = 0
    remarks: Sequence[str] = ()

    @property
    def wrong(self) -> int:
        """Return how many joins were not answered rightly."""
        return sum(not join.is_right_within(RIGHT_WITHIN_S) for join in self.flood.joins)

    @property
    def wrong_in_gaps(self) -> int:
        """Return how many of them were due while nobody led, or so shortly before that the kill hit them."""
        spans = [(each.killed_s - RIGHT_WITHIN_S, each.recovered_s or each.killed_s) for each in self.failovers]
        wrong = [join for join in self.flood.joins if not join.is_right_within(RIGHT_WITHIN_S)]
        return sum(any(since_s <= join.due_s <= until_s for since_s, until_s in spans) for join in wrong)

    def availability(self) -> float:
        """Return the share that is answered rightly in an hour with one kill."""
        return 1 - self.wrong / len(self.failovers) / (self.flood.rate_per_s * HOUR_S)

    def table(self) -> str:
        """Return the figures for people."""
        gaps = sorted(failover.gap_s for failover in self.failovers)
        late = sorted(self.flood.late_s)
        joins, p = self.flood.joins, quantile
        reached = len(joins) / (joins[-1].sent_s - joins[0].sent_s)
        looks = sum(entry.op == "position" for entry in self.evidence.entries)
        kinds = Counter(line.kind for line in self.evidence.log)
        rows = [
            ("kills", f"{len(gaps)}"),
            ("recovery p50 / p90 / max", f"{p(gaps, 0.5):.2f} / {p(gaps, 0.9):.2f} / {gaps[-1]:.2f} s"),
            ("joins due, reached", f"{self.flood.rate_per_s:.0f} /s, {reached:.0f} /s"),
            ("sent late p50 / p99", f"{p(late, 0.5) * 1e3:.1f} / {p(late, 0.99) * 1e3:.1f} ms"),
            ("acked", f"{self.report.acknowledged} ({self.report.joins} joins)"),
            *((kind, f"{self.report.count(kind)}") for kind in ("lost", "reordered", "duplicated")),
            ("places looked at", f"{looks}, {self.stale_reads} called stale"),
            ("records", ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())),
            (
                "wrong in a second",
                f"{self.wrong} of {len(joins)}, {self.wrong / len(gaps):.0f} per kill; {self.wrong_in_gaps} in gaps",
            ),
            ("availability", f"{self.availability():.4%} of an hour with one kill"),
        ]
        rows += [(f"kill {at}", remark) for at, remark in enumerate(self.remarks, 1)]
        return "\n".join(f"  {name:<26}{value}" for name, value in rows)


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which a share of them lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def entries_of(joins: Iterable[Join]) -> Iterator[Entry]:
    """Yield the history of those who joined once each, every one a client of their own."""
    for join in joins:
        place, client = join.place, FIRST_CLIENT + join.index
        if join.answered_s is None or place is None:
            yield Entry(client, "join", join.sent_s, None, join.user_id, join.key)
        else:
            yield entry_of("join", client, join.sent_s, join.answered_s, place)._replace(key=join.key)


def entry_of(op: str, client: int, sent_s: float, answered_s: float, place: PlaceReply) -> Entry:
    """Return what somebody was told of a place."""
    told = (place.status, place.position, place.epoch, place.version)
    return Entry(client, op, sent_s, answered_s, place.user_id, "", place.number, place.arrival, *told)


class Listed(msgspec.Struct):
    """One of the places an operator is shown."""

    user_id: str
    arrival: int
    number: int
    status: str


class Page(msgspec.Struct):
    """Some of the places, and where to go on."""

    visitors: list[Listed]
    next: int | None


def places_of(node: Daemon) -> dict[int, FinalPlace]:
    """Return all places as a server shows them to an operator; blocks."""
    places: dict[int, FinalPlace] = {}
    after: int | None = 0
    while after is not None:
        told = node.admin("GET", f"{ADMIN}/visitors?limit={PAGE}&after={after}")
        page = msgspec.convert(told, Page)
        places |= {place.arrival: FinalPlace(place.user_id, place.number, place.status) for place in page.visitors}
        after = page.next
    return places
