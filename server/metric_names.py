"""How numbers of the log, the snapshots and the sockets are called in Prometheus, and what they mean.

The left-hand names are those of `Backend.status().details` and of the hub's `stats()`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Named(NamedTuple):
    """A series: its name (without `_total`), what it says, and whether it is a sum that only grows."""

    series: str
    about: str
    is_sum: bool


def _sum(series: str, about: str) -> Named:
    return Named(series, about, True)


def _gauge(series: str, about: str) -> Named:
    return Named(series, about, False)


LOG: Mapping[str, Named] = MappingProxyType(
    {
        "last_lsn": _gauge("stanchion_log_last_lsn", "LSN of the newest record"),
        "durable_lsn": _gauge("stanchion_log_durable_lsn", "LSN of the newest record known to be durable"),
        "queued_records": _gauge("stanchion_log_queued_records", "Records waiting to be durable"),
        "queued_bytes": _gauge("stanchion_log_queued_bytes", "Bytes waiting to be durable, estimated"),
        "commits": _sum("stanchion_log_commits", "Commits: frames written and flushed"),
        "committed_records": _sum("stanchion_log_committed_records", "Records committed"),
        "commit_seconds_last": _gauge("stanchion_log_commit_last_seconds", "How long the last commit took"),
        "commit_seconds_sum": _sum("stanchion_log_commit_seconds", "How long all commits took"),
        "written_bytes": _sum("stanchion_log_written_bytes", "Bytes written to the log"),
        "segments": _gauge("stanchion_log_segments", "Segments in the log"),
        "storage_full": _gauge("stanchion_log_storage_full", "1 while the next segment cannot be reserved"),
        "failed": _gauge("stanchion_log_failed", "1 once a write or flush failed"),
        "epoch": _gauge("stanchion_log_epoch", "Epoch written in every frame"),
        "replication_term": _gauge("stanchion_replication_term", "Term of the newest epoch known here"),
        "replication_followers": _gauge("stanchion_replication_followers", "Followers connected to this primary"),
        "replication_in_step": _gauge("stanchion_replication_in_step", "1 while a standby waited for may take over"),
        "replication_connected": _gauge("stanchion_replication_connected", "1 while the primary is in reach"),
        "replication_lag_records": _gauge("stanchion_replication_lag_records", "Records the slowest follower lacks"),
        "replication_lag_bytes": _gauge("stanchion_replication_lag_bytes", "Bytes of log the slowest follower lacks"),
        "replication_lag_seconds": _gauge("stanchion_replication_lag_seconds", "Time since it was up to date"),
        "replication_committed_lsn": _gauge("stanchion_replication_committed_lsn", "LSN up to which answers may tell"),
        "replication_wrong_keys": _sum("stanchion_replication_wrong_keys", "Links refused for their replication key"),
        "snapshots": _gauge("stanchion_snapshot_kept", "Snapshots kept"),
        "snapshot_failures": _sum("stanchion_snapshot_failures", "Snapshots that could not be written"),
        "snapshot_lsn": _gauge("stanchion_snapshot_last_lsn", "LSN of the newest snapshot"),
        "snapshot_age_seconds": _gauge("stanchion_snapshot_age_seconds", "Age of the newest snapshot"),
        "snapshot_bytes": _gauge("stanchion_snapshot_size_bytes", "Size of the newest snapshot"),
        "snapshot_seconds": _gauge("stanchion_snapshot_duration_seconds", "How long the newest snapshot took"),
        "snapshot_last_lsn": _gauge("stanchion_snapshot_last_lsn", "LSN of the newest snapshot"),
        "snapshot_last_size_bytes": _gauge("stanchion_snapshot_size_bytes", "Size of the newest snapshot"),
        "snapshot_last_seconds": _gauge("stanchion_snapshot_duration_seconds", "How long the newest snapshot took"),
    }
)

HUB: Mapping[str, Named] = MappingProxyType(
    {
        "sockets": _gauge("stanchion_sockets", "Connected visitors, WebSocket and SSE"),
        "sweeps": _sum("stanchion_sweeps", "Sweeps over the sockets of an event"),
        "sweep_seconds_last": _gauge("stanchion_sweep_last_seconds", "How long the last sweep took"),
        "pushes": _sum("stanchion_pushes", "Messages written to sockets"),
        "slow_skipped": _sum("stanchion_slow_skipped", "Messages not written to a socket that was still full"),
        "slow_closed": _sum("stanchion_slow_closed", "Sockets closed because nobody read them"),
        "dead_closed": _sum("stanchion_dead_closed", "Sockets closed because nothing was heard from them"),
    }
)
