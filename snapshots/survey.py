"""Looking at a data folder without changing it: what is there, and where it stops being what was written.

First the snapshots, newest first, until one verifies. It tells from where the log is needed. What lies before
that place is read leniently: damage there is reported, and does not keep anybody from starting. From that place
on, one chain must hold to the end; the first contradiction is *the* flaw, and with everything a decision needs
to know about it goes into `Findings`, the columns of the table in `recovery`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from snapshots.notes import INCOMPLETE_NAME, MIRRORED_NAME, read_note, why_incomplete
from snapshots.reading import start_of
from snapshots.scan import Cursor, Flaw, FlawKind, SegmentReader, frame_headers_after, read_segment_header
from snapshots.segments import LogPosition
from snapshots.snapshot import (
    SNAPSHOT_FOLDER,
    SNAPSHOT_SUFFIX,
    SnapshotFlaw,
    SnapshotHeader,
    snapshot_name,
    verify_snapshot,
)
from snapshots.storage import Storage
from snapshots.wal import (
    FORMAT_VERSION,
    LOG_FOLDER,
    RESERVED_SUFFIX,
    SEGMENT_SUFFIX,
    SegmentHeader,
    segment_name,
    sequence_of,
)

Progress = Callable[[int, int], None]
NOWHERE = LogPosition(0, 0, 0, 0)


def no_progress(_done: int, _total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a decision about the log depends on; each field is a column of the table in `recovery`."""

    used: bool
    """The folder holds a segment or a snapshot."""
    foreign: bool
    """Something whole is there that belongs to another log or another version of the format."""
    epoch_fell: bool
    """An older epoch follows a newer one."""
    reaches_back: bool
    """The log begins at LSN 1 or at the chosen snapshot."""
    invalid: bool
    """There is a flaw behind the chosen snapshot."""
    in_last_segment: bool
    """The flaw lies in the last segment."""
    valid_after: bool
    """A valid frame stands somewhere after the flaw, where only one frame is written at a time."""
    proven_synced: bool
    """The flawed frame is known to have been durable."""


@dataclass(frozen=True, slots=True)
class SnapshotFindings:
    """What the choice of the snapshot depends on."""

    any_snapshot: bool
    newest_good: bool
    older_good: bool
    damaged_below: bool
    """The log is damaged at or below the chosen snapshot, where it is no longer needed."""


@dataclass(slots=True)
class Survey:
    """Everything a look at the folder has found."""

    segments: list[str] = field(default_factory=list)
    log_id: bytes = b""
    snapshot: SnapshotHeader | None = None
    bad_snapshots: list[SnapshotFlaw] = field(default_factory=list)
    snapshot_count: int = 0
    below: list[Flaw] = field(default_factory=list)
    flaw: Flaw | None = None
    foreign: str = ""
    gap: str = ""
    flaw_in_last: bool = False
    valid_after_lsn: int | None = None
    start: LogPosition = NOWHERE
    end: Cursor = field(default_factory=lambda: Cursor(NOWHERE))
    frame_epoch: int = 0
    frame_count: int = 0
    noted: tuple[int, int] | None = None
    """Up to which sequence and offset a standby has noted that its log is on disk."""

    @property
    def snapshot_lsn(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.lsn

    def findings(self) -> Findings:
        """Return the columns of the end-of-log table."""
        flaw = self.flaw
        flushed = None if flaw is None or not self.flaw_in_last else self._noted_in(flaw.name)
        was_durable = flaw is not None and (flaw.written_past if flushed is None else flaw.offset < flushed)
        return Findings(
            used=bool(self.segments or self.snapshot_count or flaw),
            foreign=bool(self.foreign),
            epoch_fell=flaw is not None and flaw.kind is FlawKind.EPOCH,
            reaches_back=not self.gap,
            invalid=flaw is not None,
            in_last_segment=self.flaw_in_last,
            valid_after=self.valid_after_lsn is not None and flushed is None,
            proven_synced=was_durable or (flaw is not None and flaw.due_lsn <= self.snapshot_lsn),
        )

    def _noted_in(self, name: str) -> int | None:
        """Return up to which offset a segment is noted to be on disk; None where no note speaks of it."""
        return self.noted[1] if self.noted is not None and self.noted[0] == sequence_of(name) else None

    def snapshot_findings(self) -> SnapshotFindings:
        """Return the columns of the table that chooses where to start."""
        return SnapshotFindings(
            any_snapshot=self.snapshot_count > 0,
            newest_good=self.snapshot is not None and not self.bad_snapshots,
            older_good=self.snapshot is not None and bool(self.bad_snapshots),
            damaged_below=bool(self.below),
        )


def look(storage: Storage, progress: Progress = no_progress, *, ignore_incomplete: bool = False) -> Survey:
    """Read the whole folder and say what is there; changes nothing. Raises StorageFailed, and Damaged for odd names."""
    survey = Survey(segments=segment_names(storage))
    if not ignore_incomplete and (why := why_incomplete(storage)) is not None:
        survey.foreign = why
        survey.flaw = Flaw(INCOMPLETE_NAME, 0, 0, survey.foreign)
        return survey
    survey.noted = read_note(storage)
    _choose_snapshot(storage, survey)
    if survey.segments and not survey.foreign:
        _read_log(storage, survey, progress)
    elif survey.snapshot_count:
        survey.gap = "there is a snapshot but no log"
    else:
        _check_tail(storage, survey)
    return survey


def segment_names(storage: Storage) -> list[str]:
    """Return the segments in order of their sequence."""
    names = [name for name in storage.names(LOG_FOLDER) if name.endswith(SEGMENT_SUFFIX)]
    return sorted(names, key=sequence_of)


def snapshot_names(storage: Storage) -> list[str]:
    """Return the snapshots, newest first."""
    return sorted((n for n in storage.names(SNAPSHOT_FOLDER) if n.endswith(SNAPSHOT_SUFFIX)), reverse=True)


def _choose_snapshot(storage: Storage, survey: Survey) -> None:
    names = snapshot_names(storage)
    survey.snapshot_count = len(names)
    for name in names:
        storage.drop_cache(name)
        verified = verify_snapshot(storage, name)
        if isinstance(verified, SnapshotHeader):
            survey.snapshot, survey.log_id = verified, verified.log_id
            return
        if verified.foreign:
            survey.foreign = f"{name}: {verified.problem}"
            return
        survey.bad_snapshots.append(verified)


def _read_log(storage: Storage, survey: Survey, progress: Progress) -> None:
    headers: dict[str, SegmentHeader | str] = {}
    for name in survey.segments:
        storage.drop_cache(name)
        headers[name] = read_segment_header(storage, name)
    _find_foreign(survey, headers)
    if survey.foreign:
        return
    first = _find_start(storage, survey, headers)
    if survey.gap:
        return
    _read_below(storage, survey, headers)
    total = sum(storage.size_bytes(name) for name in survey.segments)
    done = sum(storage.size_bytes(name) for name in survey.segments[:first])
    for index in range(first, len(survey.segments)):
        name = survey.segments[index]
        if index > first:
            survey.flaw = _enter_segment(survey.end, name, headers[name])
        if survey.flaw is None:
            survey.flaw = _read_segment(storage, survey, name, is_last=index + 1 == len(survey.segments))
        if survey.flaw is not None:
            _look_past(storage, survey, index)
            return
        done += storage.size_bytes(name)
        progress(done, total)
    _check_tail(storage, survey)


def _find_foreign(survey: Survey, headers: dict[str, SegmentHeader | str]) -> None:
    """Find a segment whose header is whole and which is not of this log or not of this format."""
    for name, header in headers.items():
        if isinstance(header, str):
            continue
        survey.log_id = survey.log_id or header.log_id
        if header.version != FORMAT_VERSION:
            survey.foreign = f"{name} has format version {header.version}, this Stanchion reads {FORMAT_VERSION}"
        elif header.log_id != survey.log_id:
            survey.foreign = f"{name} belongs to the log {header.log_id.hex()}, not to {survey.log_id.hex()}"


def _find_start(storage: Storage, survey: Survey, headers: dict[str, SegmentHeader | str]) -> int:
    """Set the place from which the log is needed; return the index of its segment, or set `gap` or `flaw`."""
    if survey.snapshot is None:
        return _start_at_first(survey, headers[survey.segments[0]])
    lsn, position = survey.snapshot.lsn, survey.snapshot.position
    later: list[SegmentHeader] = []
    for index, name in enumerate(survey.segments):
        header = headers[name]
        if sequence_of(name) == position.sequence and storage.size_bytes(name) >= position.offset:
            _start_at(survey, position, header)
            return index
        if sequence_of(name) > position.sequence and isinstance(header, SegmentHeader):
            later.append(header)
    reaching = [header for header in later if header.first_lsn <= lsn + 1]
    if reaching:  # the log was damaged below the snapshot, and a later process went on behind the snapshot
        _start_at(survey, start_of(reaching[-1]), reaching[-1])
        return survey.segments.index(segment_name(reaching[-1].sequence, reaching[-1].first_lsn))
    if sequence_of(survey.segments[-1]) > position.sequence:
        goes_on = f"goes on at {later[0].first_lsn}" if later else "cannot be read behind it"
        survey.gap = f"the newest snapshot that verifies ends at LSN {lsn}, the log {goes_on}"
        return 0
    name = survey.segments[-1]
    size_bytes = storage.size_bytes(name)
    survey.below.append(Flaw(name, size_bytes, 0, "the log ends before the newest snapshot"))
    _start_at(survey, LogPosition(lsn, position.chain, sequence_of(name), size_bytes), headers[name])
    return len(survey.segments)


def _start_at_first(survey: Survey, header: SegmentHeader | str) -> int:
    """Start at the beginning of the whole log, if the first segment is that."""
    name = survey.segments[0]
    if isinstance(header, str):
        survey.flaw = _header_flaw(name, 1, header)
    elif header.first_lsn != 1 or header.sequence != 1:
        survey.gap = f"the log begins at LSN {header.first_lsn} ({name}) and no snapshot verifies"
    else:
        _start_at(survey, start_of(header), header)
    return 0


def _start_at(survey: Survey, position: LogPosition, header: SegmentHeader | str) -> None:
    epoch = survey.snapshot.epoch if survey.snapshot is not None else 0
    survey.start = position
    survey.end = Cursor(position, header.epoch if isinstance(header, SegmentHeader) else epoch)


def _read_below(storage: Storage, survey: Survey, headers: dict[str, SegmentHeader | str]) -> None:
    """Note damage in the part of the log that the snapshot has made unnecessary; one flaw per segment."""
    start = survey.start
    cursor: Cursor | None = None
    for name in survey.segments:
        if sequence_of(name) > start.sequence or (sequence_of(name) == start.sequence and start.offset == 0):
            return
        header = headers[name]
        flaw = Flaw(name, 0, 0, header) if isinstance(header, str) else None
        if cursor is not None:
            flaw = _enter_segment(cursor, name, header)
        if flaw is not None:
            survey.below.append(flaw)
        cursor = None
        if isinstance(header, SegmentHeader):
            cursor = Cursor(start_of(header), header.epoch)
            flaw = _read_up_to(storage, name, cursor, start)
            if flaw is not None:
                survey.below.append(flaw)
                cursor = None


def _read_up_to(storage: Storage, name: str, cursor: Cursor, start: LogPosition) -> Flaw | None:
    """Read a segment leniently, as far as it stands before `start`."""
    in_start = cursor.position.sequence == start.sequence
    if in_start and cursor.position.offset >= start.offset:
        return None
    reader = SegmentReader(storage, name, cursor)
    for _ in reader:
        if in_start and cursor.position.offset >= start.offset:
            return None
    return reader.flaw


def _header_flaw(name: str, due_lsn: int, problem: str) -> Flaw:
    """A flaw in a segment's header, which is durable before the segment has its name: no crash leaves that."""
    return Flaw(name, 0, due_lsn, problem, written_past=True)


def _enter_segment(cursor: Cursor, name: str, header: SegmentHeader | str) -> Flaw | None:
    """Move the cursor into the next segment, unless its header contradicts where the one before ended."""
    end = cursor.position
    due = SegmentHeader(FORMAT_VERSION, end.sequence + 1, end.lsn + 1, cursor.epoch, end.chain, b"")
    if isinstance(header, str):
        return _header_flaw(name, due.first_lsn, header)
    if name != segment_name(header.sequence, header.first_lsn):
        return _header_flaw(name, due.first_lsn, "the file's name is not that of the segment in it")
    if header.sequence != due.sequence:
        return _header_flaw(name, due.first_lsn, f"segment {due.sequence} is missing before it")
    if header.first_lsn != due.first_lsn or header.chain != due.chain:
        return _header_flaw(name, due.first_lsn, "it does not continue the segment before it")
    if header.epoch < due.epoch:
        problem = f"epoch {header.epoch} follows epoch {due.epoch}"
        return Flaw(name, 0, due.first_lsn, problem, FlawKind.EPOCH)
    cursor.position = start_of(header)
    cursor.epoch = header.epoch
    return None


def _read_segment(storage: Storage, survey: Survey, name: str, *, is_last: bool) -> Flaw | None:
    reader = SegmentReader(storage, name, survey.end)
    for frame in reader:
        survey.frame_count += 1
        survey.frame_epoch = frame.header.epoch
    if reader.flaw is None and reader.padding_bytes and not is_last:
        end = survey.end.position
        return Flaw(name, end.offset, end.lsn + 1, "the segment is not complete though another one follows")
    return reader.flaw


def _look_past(storage: Storage, survey: Survey, index: int) -> None:
    """Find out what stands after the flaw, in its own segment and in later ones."""
    assert survey.flaw is not None
    survey.flaw_in_last = index + 1 == len(survey.segments)
    headers = [h for _, h in frame_headers_after(storage, survey.flaw.name, survey.flaw.offset + 1)]
    for name in survey.segments[index + 1 :]:
        headers += [h for _, h in frame_headers_after(storage, name, 0)[:1]]
    if headers:
        survey.valid_after_lsn = headers[0].first_lsn


def _check_tail(storage: Storage, survey: Survey) -> None:
    """Find out whether the last segments were taken away: what they were proven by may still be there."""
    end = survey.end.position
    for name in storage.names(LOG_FOLDER):
        if name.endswith(RESERVED_SUFFIX) and sequence_of(name) > end.sequence + 1:
            problem = f"segment {sequence_of(name) - 1} is missing, the one after it was being prepared"
            survey.flaw = Flaw(name, 0, end.lsn + 1, problem)
    if survey.flaw is None and survey.noted is not None and survey.noted > (end.sequence, end.offset):
        problem = f"the log ends before segment {survey.noted[0]}, offset {survey.noted[1]}, which was on disk"
        survey.flaw = Flaw(MIRRORED_NAME, 0, end.lsn + 1, problem)
    if survey.flaw is None and survey.snapshot is not None and survey.snapshot.epoch > survey.end.epoch:
        problem = f"the log ends in epoch {survey.end.epoch}, the snapshot is of epoch {survey.snapshot.epoch}"
        survey.flaw = Flaw(snapshot_name(survey.snapshot.lsn), 0, end.lsn + 1, problem, FlawKind.EPOCH)
