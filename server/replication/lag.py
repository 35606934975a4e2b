"""How far a follower is behind."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lag:
    """In records, in bytes of the log, and in seconds since it was up to date."""

    records: int
    bytes: int
    seconds: float
