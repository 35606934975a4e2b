"""Deciding what to do with what a survey found, and doing it: two tables and a handful of repairs.

Every combination of findings stands in exactly one row of `END_OF_LOG` and one of `START` (a test goes through
all of them). A refusal changes nothing. A repair only ever copies aside (into `quarantine`, under a name made
of the content, written, flushed and renamed before anything is cut) and then cuts, so recovery can be killed
at any point and run again with the same result, and no evidence is ever lost.

A tail can be called torn only where a crash could have left it: the last frame of the last segment, nothing
after it. The writer has one frame in flight and writes the next one, or the empty frame of an idle log, only
once that is durable; so whatever has something behind it was durable, and its damage is not a crash.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum

from engine.errors import Damaged, StorageFailed
from snapshots.notes import MIRRORED_NAME, NEW_INCOMPLETE_NAME
from snapshots.quarantine import QUARANTINE_FOLDER, copy_aside, length_without_zeros
from snapshots.scan import Flaw, frame_headers_after
from snapshots.segments import LogPosition
from snapshots.snapshot import SNAPSHOT_FOLDER, TEMPORARY_SUFFIX, snapshot_name
from snapshots.storage import Storage
from snapshots.survey import Findings, Survey, look
from snapshots.wal import LOG_FOLDER, RESERVED_SUFFIX, SEGMENT_HEADER_BYTES, first_chain

LOG_ID_BYTES = 16


class Decision(Enum):
    """What is done about the log."""

    NEW = "begin a new log"
    OPEN = "go on behind the last frame"
    CUT_TAIL = "copy the torn tail aside, cut it off, go on"
    REFUSE_FOREIGN = "refuse: another log or another format"
    REFUSE_EPOCH = "refuse: epochs go backwards"
    REFUSE_GAP = "refuse: records are missing before the log begins"
    REFUSE_CORRUPT = "refuse: acknowledged records are damaged"


ACCEPTABLE = frozenset({Decision.REFUSE_CORRUPT, Decision.REFUSE_EPOCH})
REFUSALS = ACCEPTABLE | {Decision.REFUSE_FOREIGN, Decision.REFUSE_GAP}


class Start(Enum):
    """From what the state is rebuilt, and what is put aside."""

    LOG = "the log from its beginning"
    NEWEST = "the newest snapshot"
    NEWEST_ALARM = "the newest snapshot; the damaged log below it is copied aside"
    OLDER_ALARM = "an older snapshot; the bad one is put aside"
    LOG_ALARM = "the log from its beginning; the bad snapshots are put aside"


Row = tuple[str, Mapping[str, bool], Decision]

_OURS = {"used": True, "foreign": False}
_ORDERED = {**_OURS, "epoch_fell": False}
_WHOLE = {**_ORDERED, "reaches_back": True}
_FLAWED = {**_WHOLE, "invalid": True}
_AT_END = {**_FLAWED, "in_last_segment": True}

END_OF_LOG: tuple[Row, ...] = (
    ("empty folder", {"used": False}, Decision.NEW),
    ("foreign or future format", {"used": True, "foreign": True}, Decision.REFUSE_FOREIGN),
    ("an epoch older than one before it", {**_OURS, "epoch_fell": True}, Decision.REFUSE_EPOCH),
    ("log begins after the snapshot", {**_ORDERED, "reaches_back": False}, Decision.REFUSE_GAP),
    ("whole", {**_WHOLE, "invalid": False}, Decision.OPEN),
    ("flaw in an earlier segment", {**_FLAWED, "in_last_segment": False}, Decision.REFUSE_CORRUPT),
    ("flaw with a valid frame after it", {**_AT_END, "valid_after": True}, Decision.REFUSE_CORRUPT),
    (
        "flaw in what was durable",
        {**_AT_END, "valid_after": False, "proven_synced": True},
        Decision.REFUSE_CORRUPT,
    ),
    ("torn last frame", {**_AT_END, "valid_after": False, "proven_synced": False}, Decision.CUT_TAIL),
)

_SOME = {"any_snapshot": True}
START: tuple[tuple[str, Mapping[str, bool], Start], ...] = (
    ("no snapshot", {"any_snapshot": False}, Start.LOG),
    ("newest good", {**_SOME, "newest_good": True, "damaged_below": False}, Start.NEWEST),
    ("newest good, log damaged below", {**_SOME, "newest_good": True, "damaged_below": True}, Start.NEWEST_ALARM),
    ("newest bad, older good", {**_SOME, "newest_good": False, "older_good": True}, Start.OLDER_ALARM),
    ("none good", {**_SOME, "newest_good": False, "older_good": False}, Start.LOG_ALARM),
)


def matching(row: Mapping[str, bool], findings: Mapping[str, bool]) -> bool:
    """Whether a row of a table speaks of these findings; a column a row does not name may hold anything."""
    return all(findings[column] == value for column, value in row.items())


def decide(findings: Findings) -> tuple[str, Decision]:
    """Return the row of the table for these findings."""
    columns = asdict(findings)
    return next((name, decision) for name, row, decision in END_OF_LOG if matching(row, columns))


def choose_start(survey: Survey) -> Start:
    """Return from what the state is to be rebuilt."""
    columns = asdict(survey.snapshot_findings())
    return next(start for _, row, start in START if matching(row, columns))


@dataclass(frozen=True, slots=True)
class Found:
    """What recovery found and did; `sentences` says it all for people, `alarms` what somebody must look at.

    `previous_epoch` is that of the newest frame, or else of the snapshot; if the journal's own is of a later
    term, the folder was restored or promoted, and what was acknowledged after it may be missing from it.
    """

    decision: Decision
    start: Start
    last_lsn: int
    snapshot_lsn: int
    snapshot_at_ms: int
    snapshot: str | None
    previous_epoch: int
    torn_bytes: int
    torn_frames: int
    quarantined: tuple[str, ...]
    alarms: tuple[str, ...]
    accepted_loss: str | None
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """A folder that is in order: where to replay from, where to go on, and the report."""

    log_id: bytes
    segments: tuple[str, ...]
    start: LogPosition
    end: LogPosition
    epoch: int
    stated_durable_lsn: int
    found: Found


WAYS_OUT = "Ways out: restore a backup, or copy the data folder of a follower."
ACCEPTING = (
    "Or accept the loss of everything from there on with --accept-loss: what is cut is kept in the quarantine "
    "folder, and the loss is recorded."
)


def explain_refusal(place: str, survey: Survey, decision: Decision, row: str) -> str:
    """Say why a folder is refused: file, offset, LSN range, and what can be done."""
    if decision is Decision.REFUSE_FOREIGN:
        return f"{place}: {survey.foreign}. Nothing was changed."
    if decision is Decision.REFUSE_GAP:
        return f"{place}: {survey.gap}; the records between are missing. Nothing was changed. {WAYS_OUT}"
    flaw = survey.flaw
    assert flaw is not None
    until = "the end" if survey.valid_after_lsn is None else f"LSN {survey.valid_after_lsn - 1}"
    return (
        f"{place}/{flaw.name} is damaged at offset {flaw.offset}, LSN {flaw.due_lsn} to {until}: "
        f"{flaw.problem} ({row}). Nothing was changed. {WAYS_OUT} {ACCEPTING}"
    )


class _Repair:
    """The repairs of one recovery, and what they have to say."""

    def __init__(self, storage: Storage, survey: Survey) -> None:
        self.storage = storage
        self.survey = survey
        self.quarantined: list[str] = []
        self.alarms: list[str] = []
        self.sentences: list[str] = []
        self.torn_bytes = 0
        self.torn_frames = 0
        self.accepted_loss: str | None = None

    def put_snapshots_aside(self) -> None:
        """Move the snapshots that do not verify into the quarantine folder."""
        for bad in self.survey.bad_snapshots:
            self._alarm(f"{bad.name} is not a snapshot to start from: {bad.problem} at offset {bad.offset}")
            if self._copy_aside(bad.name, 0, self.storage.size_bytes(bad.name)):
                self.storage.unlink(bad.name)

    def put_damaged_log_aside(self) -> None:
        """Copy damaged segments that are no longer needed; they stay in place until they are pruned."""
        for flaw in self.survey.below:
            self._alarm(f"{flaw.name} is damaged at offset {flaw.offset}, below the snapshot: {flaw.problem}")
            self._copy_aside(flaw.name, 0, self.storage.size_bytes(flaw.name))

    def cut_tail(self, flaw: Flaw) -> None:
        """Copy a torn tail aside and cut it off."""
        length = length_without_zeros(self.storage, flaw.name, flaw.offset)
        headers = frame_headers_after(self.storage, flaw.name, flaw.offset)
        self.torn_bytes, self.torn_frames = length, max(1, len(headers))
        self._must_copy_aside(flaw.name, flaw.offset, length)
        self._truncate(flaw.name, flaw.offset)
        frames = "1 frame" if self.torn_frames == 1 else f"{self.torn_frames} frames"
        self.sentences.append(
            f"cut {length} bytes never acknowledged ({frames}) from {flaw.name} at offset {flaw.offset}"
        )

    def accept_loss(self, flaw: Flaw) -> None:
        """Cut the log at the flaw: the later segments go aside, last first, then the rest of the flawed one.

        The removals become durable with the folder's next flush, when the new segment is named; a crash before
        that leaves a folder that is refused again, or accepted again with the same result.
        """
        self.remove_temporaries()
        behind = [name for name in self.survey.segments if name > flaw.name]
        for name in reversed(behind):
            self._must_copy_aside(name, 0, self.storage.size_bytes(name))
            self.storage.unlink(name)
        if flaw.offset < SEGMENT_HEADER_BYTES:
            self._must_copy_aside(flaw.name, 0, self.storage.size_bytes(flaw.name))
            self.storage.unlink(flaw.name)
        elif flaw.name in self.survey.segments:
            length = length_without_zeros(self.storage, flaw.name, flaw.offset)
            self._must_copy_aside(flaw.name, flaw.offset, length)
            self._truncate(flaw.name, flaw.offset)
        self.accepted_loss = f"everything from LSN {flaw.due_lsn} on is lost: {flaw.name}, offset {flaw.offset}"
        self._alarm(self.accepted_loss)

    def remove_temporaries(self) -> None:
        """Remove reserved space, half-written snapshots and notes: nothing in them was ever acknowledged."""
        for folder, suffix in ((LOG_FOLDER, RESERVED_SUFFIX), (SNAPSHOT_FOLDER, TEMPORARY_SUFFIX)):
            for name in self.storage.names(folder):
                if name.endswith(suffix) or name in (MIRRORED_NAME, NEW_INCOMPLETE_NAME):
                    self.storage.unlink(name)

    def seal(self, end: LogPosition) -> None:
        """Make the last segment end with its last frame, and everything in it durable."""
        if self.survey.segments and end.sequence:
            self._truncate(self.survey.segments[-1], end.offset)

    def _truncate(self, name: str, length: int) -> None:
        file = self.storage.open_file(name)
        file.truncate(length)
        file.fsync()
        file.close()

    def _alarm(self, sentence: str) -> None:
        self.alarms.append(sentence)
        self.sentences.append(sentence)

    def _must_copy_aside(self, name: str, offset: int, length: int) -> None:
        if length and not self._copy_aside(name, offset, length):
            raise StorageFailed(f"no space in {self.storage.place} to keep a copy of what is cut: make room first")

    def _copy_aside(self, name: str, offset: int, length: int) -> bool:
        """Copy bytes into the quarantine folder; False where there is no space."""
        copy = copy_aside(self.storage, name, offset, length)
        if copy is None:
            self._alarm(f"no space to keep a copy of {name}; it was left where it is")
            return False
        self.quarantined.append(copy)
        return True


def recover(storage: Storage, accept_loss: bool) -> Recovered:
    """Bring a locked folder in order and say from where to replay and where to go on.

    Raises Damaged where acknowledged records may be missing, having changed nothing; StorageFailed where the
    disk fails. May be killed at any point and run again.
    """
    for folder in (LOG_FOLDER, SNAPSHOT_FOLDER, QUARANTINE_FOLDER):
        storage.make_folder(folder)
    storage.sync_directory("")
    survey = look(storage)
    repair = _Repair(storage, survey)
    if accept_loss and decide(survey.findings())[1] in ACCEPTABLE and survey.flaw is not None:
        repair.accept_loss(survey.flaw)
        repair.survey = survey = look(storage)
    row, decision = decide(survey.findings())
    if decision in REFUSALS:
        raise Damaged(explain_refusal(storage.place, survey, decision, row))
    repair.put_snapshots_aside()
    repair.put_damaged_log_aside()
    if decision is Decision.CUT_TAIL and survey.flaw is not None:
        repair.cut_tail(survey.flaw)
    repair.remove_temporaries()
    return _report(survey, decision, repair)


def _report(survey: Survey, decision: Decision, repair: _Repair) -> Recovered:
    log_id = survey.log_id or os.urandom(LOG_ID_BYTES)
    end = survey.end.position if survey.segments else LogPosition(0, first_chain(log_id), 0, 0)
    repair.seal(end)
    start = choose_start(survey)
    snapshot = None if survey.snapshot is None else snapshot_name(survey.snapshot.lsn)
    told = [f"{decision.value}; start from {start.value}; last LSN {end.lsn}", *repair.sentences]
    found = Found(
        decision=decision,
        start=start,
        last_lsn=end.lsn,
        snapshot_lsn=survey.snapshot_lsn,
        snapshot_at_ms=0 if survey.snapshot is None else survey.snapshot.at_ms,
        snapshot=snapshot,
        previous_epoch=survey.frame_epoch or (0 if survey.snapshot is None else survey.snapshot.epoch),
        torn_bytes=repair.torn_bytes,
        torn_frames=repair.torn_frames,
        quarantined=tuple(repair.quarantined),
        alarms=tuple(repair.alarms),
        accepted_loss=repair.accepted_loss,
        sentences=tuple(told),
    )
    return Recovered(log_id, tuple(survey.segments), survey.start, end, survey.end.epoch, survey.end.durable_lsn, found)
