"""The one drain: records and notices leave the engine together (etcd-raft's Ready rule).

Rooms write into an outbox and whoever drives them empties it. Nothing that a notice or an answer says may
leave the process before the records up to its LSN are durable; the outbox numbers the records so that every
answer can say which LSN that is.
"""

from msgspec import Struct

from engine.records import Record
from engine.views import Notice


class Ready(Struct, frozen=True):
    """What one drain hands over; `lsn` is the LSN of the last record written so far."""

    records: list[Record]
    notices: list[Notice]
    lsn: int


class Outbox:
    """Collects what rooms decide.

    `lsn` counts every record ever written or applied, `last_ms` is the event time of the newest.
    """

    __slots__ = ("last_ms", "lsn", "notices", "records")

    def __init__(self) -> None:
        self.lsn = 0
        self.last_ms = 0
        self.records: list[Record] = []
        self.notices: list[Notice] = []

    def write(self, record: Record) -> None:
        """Take a record that was just decided and applied."""
        self.records.append(record)
        self.lsn += 1
        if record.at_ms > self.last_ms:
            self.last_ms = record.at_ms

    def count(self, record: Record) -> None:
        """Count a record that came out of the log and was just applied."""
        self.lsn += 1
        if record.at_ms > self.last_ms:
            self.last_ms = record.at_ms

    def announce(self, notice: Notice) -> None:
        """Take something to push once the records so far are durable."""
        self.notices.append(notice)

    def drain(self) -> Ready:
        """Hand over all that came since the last drain; O(1): the lists are swapped, not copied."""
        ready = Ready(self.records, self.notices, self.lsn)
        self.records = []
        self.notices = []
        return ready
