"""The timeline: what happened to one visitor, in words, told from the records that made it so.

It answers "why did I lose my place" and "why did I wait". A timeline is given every record in order and keeps a
sentence (`engine.sentences`) for each that concerns its place; what happened to the whole event (a pause, a change of
the rate, a restart) is told too while the place was held.

Two numbers lead to a place: most records name its `arrival`, those of a whole batch its queue number, which is another
one where a lobby was drawn. A log that no longer begins with its first record tells what it still knows, and says so.
"""

from collections import deque
from typing import NamedTuple

from engine.records import Deleted, Purged, Record, Started, kind_of
from engine.sentences import Story, sentence
from engine.views import Place

PRUNED = "pruned"
OMITTED = "omitted"
FIRST_ENTRIES = 500
LAST_ENTRIES = 500
ENDED = frozenset(("completed", "expired", "left", "removed"))


class Entry(NamedTuple):
    """One thing that happened: `kind` is that of the record, or PRUNED or OMITTED for what cannot be told.

    `at_ms` is the record's own time, which stands still while no server runs; `wall_ms` is Unix time, None where no
    start of the server before it is on record. `actor` and `reason` are the record's.
    """

    lsn: int
    at_ms: int
    wall_ms: int | None
    kind: str
    text: str
    actor: str | None
    reason: str | None


class Timeline:
    """The story of a place that was found. `is_whole`: the records to come begin with the first one ever."""

    def __init__(self, place: Place, *, is_whole: bool) -> None:
        self._place = place
        self._oldest: tuple[int, int] | None = None
        self._wall_ahead_ms: int | None = None
        self._begin(is_whole=is_whole)

    def _begin(self, *, is_whole: bool) -> None:
        self._is_whole = is_whole
        self._story = Story(self._place, is_whole=is_whole)
        self._forget()

    def _forget(self) -> None:
        self._story.earlier.clear()
        self._first: list[Entry] = []
        self._last: deque[Entry] = deque(maxlen=LAST_ENTRIES)
        self._omitted = 0

    def take(self, lsn: int, record: Record) -> None:
        """Take in the next record of the log, whatever it is about; O(1) beside the numbers of a batch."""
        if self._oldest is None:
            self._oldest = lsn, record.at_ms
        if isinstance(record, Started):
            self._wall_ahead_ms = record.wall_ms - record.at_ms
        if getattr(record, "event_id", self._place.event_id) != self._place.event_id:
            return
        if isinstance(record, Deleted):  # so far it was another event of the same name
            self._begin(is_whole=True)
            return
        if isinstance(record, Purged):  # who was here before is to be forgotten
            self._forget()
            return
        text = sentence(self._story, record)
        if text is not None:
            self._add(lsn, record, text)

    def _add(self, lsn: int, record: Record, text: str) -> None:
        wall_ms = None if self._wall_ahead_ms is None else record.at_ms + self._wall_ahead_ms
        why = getattr(record, "actor", None), getattr(record, "reason", None)
        entry = Entry(lsn, record.at_ms, wall_ms, kind_of(record), text, *why)
        if len(self._first) < FIRST_ENTRIES:
            self._first.append(entry)
        else:
            self._omitted += len(self._last) == LAST_ENTRIES
            self._last.append(entry)

    def entries(self) -> list[Entry]:
        """Return what was told so far, the oldest first; where that is very much, the first and the newest of it."""
        if self._is_whole or any(entry.kind in ("joined", "readmitted") for entry in self._first):
            return self._told()
        lsn, at_ms = self._oldest or (0, self._place.joined_ms)
        text = f"earlier records are not kept any more: the log begins at LSN {lsn}"
        pruned = Entry(lsn, at_ms, None, PRUNED, text, None, None)
        has_ended_before = self._story.status == "unknown" and self._place.status in ENDED
        return [pruned] if has_ended_before else [pruned, *self._told()]

    def _told(self) -> list[Entry]:
        if not self._omitted:
            return [*self._first, *self._last]
        text = f"{self._omitted:,} more entries are left out here"
        gap = self._first[-1]._replace(kind=OMITTED, text=text, actor=None, reason=None)
        return [*self._first, gap, *self._last]
