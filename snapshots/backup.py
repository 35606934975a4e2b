"""What an operator does with a data folder: verify it, look into it, back it up, restore it.

A backup is itself a data folder: the newest snapshot that verifies and the log since. Backing up and restoring
are one operation, a copy from one folder into an empty one, that carries a marker until the copy has been
verified by replay; a folder with the marker is refused by everything. A copy may be made while a daemon writes:
only frames that were whole when they were read are copied, and those never change.

A restore begins a new term, so that its epochs are above all that were ever handed out by what it restores.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import Damaged, StorageFailed, UsageError
from engine.records import kind_of
from snapshots.copying import copy_bytes
from snapshots.notes import INCOMPLETE_NAME
from snapshots.reading import records_of, start_of
from snapshots.recovery import REFUSALS, choose_start, decide, explain_refusal
from snapshots.scan import Cursor, Flaw, Frame, SegmentReader, read_segment_header
from snapshots.segments import SMALLEST_SEGMENT_BYTES, LogPosition, SegmentWriter
from snapshots.snapshot import SNAPSHOT_FOLDER, SnapshotFlaw, read_parts, snapshot_name, verify_snapshot
from snapshots.storage import DiskStorage, Storage
from snapshots.survey import Progress, Survey, look, no_progress, segment_names, snapshot_names
from snapshots.wal import (
    LOG_FOLDER,
    PAYLOAD_MAX_BYTES,
    RESTARTS_PER_TERM,
    FrameHeader,
    SegmentHeader,
    encode_frame,
    pack_records,
    sequence_of,
    unpack_records,
)

LOOKS = 16


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a complete reading of a folder found; `problems` is empty where all is well."""

    records: int
    first_lsn: int
    last_lsn: int
    snapshot_lsn: int
    epoch: int
    segments: int
    snapshots: int
    decision: str
    start: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """One frame as `inspect` tells it."""

    segment: str
    offset: int
    epoch: int
    first_lsn: int
    last_lsn: int
    durable_lsn: int
    size_bytes: int
    kinds: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class CopyInfo:
    """A copy that was verified by replay."""

    place: str
    snapshot_lsn: int
    last_lsn: int
    records: int
    size_bytes: int


def verify(storage: Storage, progress: Progress = no_progress) -> VerifyReport:
    """Read and decode everything, snapshots and log, and say what is wrong; changes nothing, needs no lock.

    On the folder of a running daemon the frame just being written may be reported as a torn tail.
    """
    survey = look_patiently(storage, progress)
    row, decision = decide(survey.findings())
    problems = [f"{bad.name}: {bad.problem} at offset {bad.offset}" for bad in survey.bad_snapshots]
    problems += [f"{flaw.name}: {flaw.problem} at offset {flaw.offset}, below the snapshot" for flaw in survey.below]
    if decision in REFUSALS:
        problems.append(explain_refusal(storage.place, survey, decision, row))
    elif survey.flaw is not None:
        problems.append(f"{survey.flaw.name}: torn at offset {survey.flaw.offset}: {survey.flaw.problem}")
    names = snapshot_names(storage)
    for name in names[len(survey.bad_snapshots) + 1 :]:
        verified = verify_snapshot(storage, name)
        if isinstance(verified, SnapshotFlaw):
            problems.append(f"{name}: {verified.problem} at offset {verified.offset}")
    records = 0
    try:
        records = 0 if decision in REFUSALS else _replay(storage, survey)
    except Damaged as error:
        problems.append(str(error))
    return VerifyReport(
        records=records,
        first_lsn=survey.start.lsn + 1,
        last_lsn=survey.end.position.lsn,
        snapshot_lsn=survey.snapshot_lsn,
        epoch=survey.end.epoch,
        segments=len(survey.segments),
        snapshots=len(names),
        decision=decision.value,
        start=choose_start(survey).value,
        problems=tuple(problems),
    )


def _replay(storage: Storage, survey: Survey) -> int:
    """Decode the snapshot and every record behind it; return how many records there were."""
    if survey.snapshot is not None:
        for _ in read_parts(storage, snapshot_name(survey.snapshot.lsn)):
            pass
    cursor = Cursor(survey.start)
    return sum(len(r) for _, r in records_of(storage, survey.segments, cursor, survey.snapshot_lsn + 1))


def inspect(storage: Storage) -> Iterator[FrameSummary]:
    """Yield every valid frame of the log, segment by segment; of a damaged segment those before the damage."""
    for name, frame in _frames(storage, segment_names(storage)):
        header = frame.header
        kinds = Counter(kind_of(record) for record in unpack_records(frame.payload, header.count))
        yield FrameSummary(
            segment=name,
            offset=frame.offset,
            epoch=header.epoch,
            first_lsn=header.first_lsn,
            last_lsn=header.last_lsn,
            durable_lsn=header.durable_lsn,
            size_bytes=header.length,
            kinds=tuple(sorted(kinds.items())),
        )


def _frames(storage: Storage, names: list[str]) -> Iterator[tuple[str, Frame]]:
    for name in names:
        header = read_segment_header(storage, name)
        if isinstance(header, SegmentHeader):
            for frame in SegmentReader(storage, name, Cursor(start_of(header))):
                yield name, frame


def backup(storage: Storage, to: Path, progress: Progress = no_progress) -> CopyInfo:
    """Copy a folder, in use or not, into the empty or missing folder `to`; raises unless the copy verifies."""
    return copy_journal(storage, _empty_folder(to), progress)


def restore(backup_dir: Path, to: Path, to_lsn: int | None = None, progress: Progress = no_progress) -> CopyInfo:
    """Copy a backup into the empty or missing folder `to`, up to `to_lsn`, and begin a new term there."""
    if not (backup_dir / LOG_FOLDER).is_dir():
        raise UsageError(f"{backup_dir} is not a backup: it has no folder named {LOG_FOLDER}")
    return copy_journal(DiskStorage(backup_dir), _empty_folder(to), progress, to_lsn=to_lsn, new_term=True)


def _empty_folder(path: Path) -> DiskStorage:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} is not an empty folder: nothing is ever copied over something that is there")
    return DiskStorage(path)


def copy_journal(
    source: Storage,
    target: Storage,
    progress: Progress = no_progress,
    to_lsn: int | None = None,
    new_term: bool = False,
) -> CopyInfo:
    """Copy snapshot and log into an empty storage and verify the copy by replay; see the top of this module."""
    survey = look_patiently(source)
    row, decision = decide(survey.findings())
    if decision in REFUSALS:
        raise Damaged(explain_refusal(source.place, survey, decision, row))
    last_lsn = survey.end.position.lsn if to_lsn is None else to_lsn
    if not survey.snapshot_lsn <= last_lsn <= survey.end.position.lsn:
        known = f"{survey.snapshot_lsn} to {survey.end.position.lsn}"
        raise UsageError(f"LSN {last_lsn} cannot be restored from {source.place}: it reaches from {known}")
    for folder in (LOG_FOLDER, SNAPSHOT_FOLDER):
        target.make_folder(folder)
    target.create(INCOMPLETE_NAME).close()
    target.sync_directory(LOG_FOLDER)
    target.sync_directory("")
    size_bytes = _copy_files(source, target, survey, last_lsn, progress)
    if new_term:
        _begin_term(target, survey.end.epoch)
    target.sync_directory(SNAPSHOT_FOLDER)
    target.sync_directory(LOG_FOLDER)
    records = _verify_copy(target, last_lsn)
    target.unlink(INCOMPLETE_NAME)
    target.sync_directory(LOG_FOLDER)
    return CopyInfo(target.place, survey.snapshot_lsn, last_lsn, records, size_bytes)


def look_patiently(storage: Storage, progress: Progress = no_progress) -> Survey:
    """Survey a folder that may be in use: a flaw counts once it is found in the same place twice.

    Until then it may only be a frame that was just being written, or a segment that was just being cut.
    """
    seen: Flaw | None = None
    for _ in range(LOOKS):
        survey = look(storage, progress)
        if decide(survey.findings())[1] not in REFUSALS or survey.flaw is None or survey.flaw == seen:
            break
        seen = survey.flaw
    return survey


def _copy_files(source: Storage, target: Storage, survey: Survey, last_lsn: int, progress: Progress) -> int:
    """Copy the snapshot, and of the log the frames from the snapshot's segment on up to `last_lsn`."""
    names = [name for name in survey.segments if sequence_of(name) >= survey.start.sequence]
    lengths = {name: source.size_bytes(name) for name in names}
    if survey.snapshot is not None:
        names.insert(0, snapshot_name(survey.snapshot.lsn))
        lengths[names[0]] = source.size_bytes(names[0])
    lengths[names[-1]] = survey.end.position.offset
    total, done = sum(lengths.values()), 0
    for name in names:
        is_segment = name.startswith(LOG_FOLDER)
        length, rest = lengths[name], b""
        if is_segment:
            start = _start_in(source, name, survey.start)
            if start.lsn >= last_lsn and start.sequence > survey.start.sequence:
                continue
            length, rest = _length_up_to(source, name, start, last_lsn, length)
        _copy_file(source, target, name, length, rest)
        done += lengths[name]
        progress(done, total)
    return done


def _start_in(storage: Storage, name: str, start: LogPosition) -> LogPosition:
    """Return where the needed part of a segment begins: at the survey's start, or at its first frame."""
    header = read_segment_header(storage, name)
    if sequence_of(name) == start.sequence or not isinstance(header, SegmentHeader):
        return start
    return start_of(header)


def _length_up_to(storage: Storage, name: str, start: LogPosition, last_lsn: int, length: int) -> tuple[int, bytes]:
    """Return how much of a segment holds only records up to `last_lsn`, and a frame for those that share one."""
    cursor = Cursor(start)
    end = start
    for frame in SegmentReader(storage, name, cursor):
        if cursor.position.offset > length:
            break
        if frame.header.last_lsn > last_lsn:
            return end.offset, _shortened(frame, end, last_lsn)
        end = cursor.position
    return end.offset, b""


def _shortened(frame: Frame, before: LogPosition, last_lsn: int) -> bytes:
    count = last_lsn - before.lsn
    if count <= 0:
        return b""
    records = unpack_records(frame.payload, frame.header.count)[:count]
    header = FrameHeader(frame.header.epoch, before.lsn + 1, count, 0, frame.header.durable_lsn, 0)
    return encode_frame(header, pack_records(records, PAYLOAD_MAX_BYTES)[0][1], before.chain)[0]


def _copy_file(source: Storage, target: Storage, name: str, length: int, rest: bytes) -> None:
    if not target.reserve(name, length):
        raise StorageFailed(f"no space in {target.place} for {name}")
    copy_bytes(source, name, 0, length, target, name)
    if rest:
        file = target.open_file(name)
        file.write(length, rest)
        file.fsync()
        file.close()


def _begin_term(target: Storage, epoch: int) -> None:
    """Seal the copy with an empty segment of the next term."""
    copied = look(target, ignore_incomplete=True)
    next_term = (epoch // RESTARTS_PER_TERM + 1) * RESTARTS_PER_TERM
    end = copied.end.position
    writer = SegmentWriter(target, SMALLEST_SEGMENT_BYTES, copied.log_id, next_term, end, end.lsn)
    writer.cut_first()
    writer.close()


def _verify_copy(target: Storage, last_lsn: int) -> int:
    for name in target.names(LOG_FOLDER) + target.names(SNAPSHOT_FOLDER):
        target.drop_cache(name)
    survey = look(target, ignore_incomplete=True)
    row, decision = decide(survey.findings())
    if decision in REFUSALS or survey.flaw is not None or survey.end.position.lsn != last_lsn:
        what = explain_refusal(target.place, survey, decision, row) if decision in REFUSALS else "it ends elsewhere"
        raise StorageFailed(f"the copy does not verify and is no backup: {what}")
    return _replay(target, survey)
