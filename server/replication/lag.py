"""How far a follower is behind."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lag:
    """In records, in bytes of the log, and in seconds since it was up to date."""

    records: int
    bytes: int
    seconds: float


def told(lag: Lag | None) -> dict[str, object]:
    """Return a lag as facts by name, each None where nothing is known."""
    return {f"lag_{name}": lag and getattr(lag, name) for name in ("records", "bytes", "seconds")}
