"""What one process is told about replication."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """`node_id` names this process for good; at `url` other servers reach it, at `public_url` visitors.

    `mode` is "single", "async" or "sync" (RELIABILITY: what an answer waits for); `lease_s` how long the right to
    answer lasts without renewal; after `standby_timeout_s` without progress a standby is no longer waited for.
    """

    node_id: str
    url: str
    public_url: str = ""
    mode: str = "sync"
    lease_s: float = 1.5
    standby_timeout_s: float = 2.0
    slice_bytes: int = 256 << 10
    ship_bytes: int = 1 << 20
    recent_bytes: int = 16 << 20

    @property
    def heartbeat_s(self) -> float:
        """How often at least a follower hears from its primary."""
        return self.lease_s / 5
