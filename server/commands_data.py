"""`stanchion inspect|backup|restore`, and `verify DIR`: what an operator does with a data folder, no server needed."""

import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
import typer

from engine.errors import Damaged, UsageError
from engine.venue import Venue
from server.keys import FOLDER
from server.terminal import bar, notes, print_json, print_table
from snapshots import backup as copies
from snapshots.reading import records_of
from snapshots.recovery import Decision
from snapshots.scan import Cursor
from snapshots.snapshot import read_parts, snapshot_name
from snapshots.storage import DiskStorage
from snapshots.survey import Progress, look
from snapshots.wal import LOG_FOLDER

REPORT_EVERY = 1_000

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A data folder.")]
Target: TypeAlias = Annotated[Path, typer.Argument(metavar="TO", help="An empty folder, or one to be made.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def verify(folder: Folder, as_json: Json = False) -> int:
    """Read all snapshots and the whole log, rebuild every line from them, and check it.

    Changes nothing. On the folder of a running server the frame just being written may show as a torn tail.
    """
    storage = _data_folder(folder)
    with bar("reading") as progress:
        report = copies.verify(storage, progress)
    problems = list(report.problems)
    is_torn = report.decision == Decision.CUT_TAIL.value
    damage = problems[:-1] if is_torn else problems
    events = visitors = 0
    if not damage:
        try:
            with bar("rebuilding") as progress:
                venue = rebuild(storage, progress)
            events, visitors = len(venue.rooms), sum(len(room.ledger.register) for room in venue.rooms.values())
        except (Damaged, AssertionError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1].name
            damage.append(f"replay: {str(error) or f'an invariant does not hold ({where})'}")
            problems.append(damage[-1])
    told = {**asdict(report), "problems": problems, "events": events, "visitors": visitors, "ok": not damage}
    if as_json:
        print_json(told)
    else:
        print_table(("", ""), ((name, value) for name, value in told.items() if name != "problems"))
        for problem in problems:
            print(problem, file=sys.stderr)
    return Damaged.exit_code if damage else 0


def rebuild(storage: DiskStorage, progress: Progress) -> Venue:
    """Return the venue that snapshot and log lead to, its invariants checked; raises Damaged or AssertionError."""
    survey, venue = look(storage), Venue()
    if survey.snapshot is not None:
        venue.load(read_parts(storage, snapshot_name(survey.snapshot.lsn)))
    total = survey.end.position.lsn - survey.snapshot_lsn
    done = 0
    cursor = Cursor(survey.start)
    for first_lsn, records in records_of(storage, survey.segments, cursor, survey.snapshot_lsn + 1):
        for lsn, record in enumerate(records, first_lsn):
            venue.apply(record)
            assert venue.outbox.lsn == lsn, f"LSN {lsn} stands where {venue.outbox.lsn} is due"
            done += 1
            if done % REPORT_EVERY == 0:
                venue.outbox.drain()
                progress(done, total)
    venue.check()
    return venue


def inspect(folder: Folder, as_json: Json = False) -> None:
    """List the frames of the log, oldest first: where each stands and what is in it."""
    for frame in copies.inspect(_data_folder(folder)):
        if as_json:
            print(msgspec.json.encode({**asdict(frame), "kinds": dict(frame.kinds)}).decode())
        else:
            kinds = ", ".join(f"{count} {kind}" for kind, count in frame.kinds) or "states what is durable"
            lsn = f"LSN {frame.first_lsn}–{frame.last_lsn}" if frame.kinds else f"LSN {frame.last_lsn}"
            print(f"{frame.segment} @{frame.offset}  epoch {frame.epoch}  {lsn}  {frame.size_bytes} bytes  {kinds}")


def backup(folder: Folder, to: Target, as_json: Json = False) -> None:
    """Copy a data folder, in use or not, and verify the copy by replay. Keys are not copied."""
    storage = _data_folder(folder)
    with bar("copying") as progress:
        info = copies.backup(storage, to, progress)
    _tell(info, as_json, f"backed up to LSN {info.last_lsn} in {info.place} ({info.size_bytes} bytes, verified)")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", exists=True, file_okay=False, help="A backup.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder, or one to be made.")],
    to_lsn: Annotated[int | None, typer.Option(min=1, help="Leave out what came after this LSN.")] = None,
    as_json: Json = False,
) -> None:
    """Make a data folder from a backup, up to its end or to an LSN."""
    with bar("copying") as progress:
        info = copies.restore(source, folder, to_lsn, progress)
    _tell(info, as_json, f"restored to LSN {info.last_lsn} in {info.place} ({info.size_bytes} bytes, verified)")
    if not as_json:
        keys = folder / FOLDER
        print(f"Put the keys back into {keys}, or make that folder, empty, to begin with new ones (all tokens void).")


def _tell(info: copies.CopyInfo, as_json: bool, sentence: str) -> None:
    if as_json:
        print_json(asdict(info))
    else:
        print(sentence)


def _data_folder(folder: Path) -> DiskStorage:
    if not (folder / LOG_FOLDER).is_dir():
        raise UsageError(f"{folder} is no data folder: it has no folder named {LOG_FOLDER}")
    return DiskStorage(folder)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog=notes("stanchion inspect ./data --json | tail -3", 65, 74))(inspect)
    app.command(epilog=notes("stanchion backup ./data /backups/2027-01-31", 65, 74))(backup)
    app.command(epilog=notes("stanchion restore /backups/2027-01-31 ./data --to-lsn 120000", 65, 74))(restore)
