"""What each bench is expected to show, written down before it is measured.

A target is a ratio of two things measured in the same run wherever that is possible, because an absolute time
says as much about the machine as about the program. At the sizes of `--quick` most mean nothing and are not
judged; `judged_when_quick` names the others.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Target(NamedTuple):
    """`sense` is ">=" or "<="; `limit` is what has to be reached."""

    bench: str
    what: str
    sense: str
    limit: float
    unit: str
    judged_when_quick: bool = False

    def reached(self, measured: float) -> bool:
        """Return whether a measured value is as good as it has to be."""
        return measured >= self.limit if self.sense == ">=" else measured <= self.limit

    def verdict(self, measured: float | None, *, quick: bool) -> str:
        """Return "reached", or what was measured instead of what was expected."""
        if measured is None:
            return "not measured"
        if quick and not self.judged_when_quick:
            return "not judged at this size"
        if self.reached(measured):
            return "reached"
        return f"NOT REACHED: {measured:.3g} instead of {self.limit:g}"

    def sentence(self) -> str:
        """Return the target for people."""
        return f"{self.what} {'≥' if self.sense == '>=' else '≤'} {self.limit:g} {self.unit}".rstrip()


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "line.rank": Target("line", "rank with 1,000,000 waiting", "<=", 3.0, "µs"),
        "room.join": Target("room", "engine join ÷ bare handler, CPU", "<=", 0.1, "×"),
        "room.memory": Target("room", "memory per waiting visitor", "<=", 400.0, "bytes"),
        "room.release": Target("room", "longest release of 1,000", "<=", 5.0, "ms"),
        "room.step_over": Target("room", "longest slice of stepping over 10,000 who left", "<=", 5.0, "ms"),
        "room.draw": Target("room", "longest step of a draw of 100,000", "<=", 5.0, "ms"),
        "admission.poll": Target("admission", "poll ÷ its floor, CPU", "<=", 1.2, "×"),
        "admission.pass": Target("admission", "poll with a pass ÷ its floor, CPU", "<=", 1.3, "×"),
        "admission.redeem": Target("admission", "redeem ÷ its floor, CPU", "<=", 1.5, "×"),
        "admission.complete": Target("admission", "complete ÷ its floor, CPU", "<=", 1.5, "×"),
        "admission.release": Target("admission", "hold of the loop by a release of 1,000", "<=", 5.0, "ms"),
        "wal.group": Target("wal", "records/s with 512 waiters ÷ bare write and flush loop", ">=", 20.0, "×"),
        "http.join": Target("http", "durable joins/s ÷ bare handler's", ">=", 0.95, "×"),
        "http.join_redis": Target("http", "joins/s ÷ the Redis design's", ">=", 4.0, "×"),
        "http.join_p99": Target("http", "join p99 ÷ the Redis design's", "<=", 1.0, "×"),
        "http.rank_redis": Target("http", "rank queries/s ÷ the Redis design's", ">=", 2.0, "×"),
        "http.rank_p99": Target("http", "rank p99 ÷ the Redis design's", "<=", 1.0, "×"),
        "http.growth": Target("http", "join with 1,000,000 waiting ÷ with 10,000, CPU", "<=", 1.2, "×"),
        "push.cost": Target("push", "push ÷ bare send loop, CPU per socket", "<=", 1.6, "×"),
        "push.in_time": Target("push", "share of sockets reached within 1 s of the release", ">=", 1.0, ""),
        "sockets.age": Target("sockets", "p99 from a release to 100,000 sockets knowing of it", "<=", 1000.0, "ms"),
        "sockets.return": Target("sockets", "100,000 hang up and come back", "<=", 20.0, "s"),
        "sockets.exact": Target("sockets", "share of frames that were exactly right", ">=", 1.0, "", True),
        "failover.recovery_sync": Target("failover", "sync: longest time without an answer", "<=", 3.0, "s"),
        "failover.recovery_async": Target("failover", "async, promoted at once: the same", "<=", 1.0, "s"),
        "failover.lost": Target("failover", "sync: acknowledged joins lost", "<=", 0.0, "", True),
        "failover.order_sync": Target("failover", "sync: joins out of order", "<=", 0.0, "", True),
        "failover.order_async": Target("failover", "async: joins out of order", "<=", 0.0, "", True),
        "failover.lag_sync": Target("failover", "sync: p99 a follower is behind under 2,000 joins/s", "<=", 50.0, "ms"),
        "failover.lag_async": Target("failover", "async: the same", "<=", 50.0, "ms"),
        "recovery.snapshot": Target("recovery", "restore 1,000,000 visitors from a snapshot", "<=", 5.0, "s"),
        "recovery.log": Target("recovery", "restore 1,000,000 visitors from the log alone", "<=", 5.0, "s"),
        "recovery.stall": Target("recovery", "longest stall while a snapshot is written − control", "<=", 20.0, "ms"),
        "crowd.exact": Target("crowd", "share of answers that were exactly right", ">=", 1.0, "", True),
    }
)


def targets_of(bench: str) -> dict[str, Target]:
    """Return the targets of one bench by key."""
    return {key: target for key, target in TARGETS.items() if target.bench == bench}


def missed(bench: str, measured: Mapping[str, float], *, quick: bool) -> list[str]:
    """Return the keys of the targets of one bench that were judged and not reached."""
    verdicts = {key: target.verdict(measured.get(key), quick=quick) for key, target in targets_of(bench).items()}
    return [key for key, verdict in verdicts.items() if verdict.startswith("NOT REACHED")]
