"""Where a published draw is read from, for whoever verifies it: a server's public routes, or a file.

A file holds the same as the two routes give: on its first line the draw, on the others an entry each. Everything is
read as a stream and bounded, because it comes from somebody who is not trusted: that is why it is verified.
"""

import asyncio
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from engine.errors import Damaged, UsageError
from server.public_client import CHUNK_BYTES, address_of, open_file, stream, whole
from server.terminal import bar

MOST_ENTRIES = 10_000_000
LONGEST_LINE_BYTES = 200
LONGEST_HEAD_BYTES = 16 << 10
EXAMPLE = "https://queue.example/v1/events/sale"
EVENT_PATH = re.compile(r".*/v1/events/[^/]+")

Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
EventId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
Whole = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Progress = Callable[[int, int], None]


class Beacon(msgspec.Struct, frozen=True):
    """A public value named before it was known; `value` is null until then."""

    name: str
    value: str | None = None


class PublishedDraw(msgspec.Struct, frozen=True):
    """What `GET …/draw` answers; the last three are null before the opening."""

    event_id: EventId
    state: str
    draw_id: str
    algorithm: str
    commitment: Hex
    beacon: Beacon | None = None
    seed: Hex | None = None
    count: int | None = None
    entries_sha256: Hex | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One line of `GET …/draw/entries`."""

    arrival: Whole
    number: Whole


_ENTRY = msgspec.json.Decoder(Entry)
_DRAW = msgspec.json.Decoder(PublishedDraw)


class Entries:
    """The entries as they come in; raises Damaged for what cannot be read as one.

    `arrivals` are in the order of the lines, 8 bytes each; `problem` is the first number that was not the one due.
    """

    def __init__(self) -> None:
        self.arrivals = array("Q")
        self.problem: str | None = None
        self._lines = 0
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > LONGEST_LINE_BYTES:
            raise self._too_long()

    def finish(self) -> None:
        """Take in what stands behind the last end of a line."""
        self._take(self._rest)
        self._rest = b""

    def _take(self, line: bytes) -> None:
        if self._lines == MOST_ENTRIES and line:
            raise Damaged(f"there are more than {MOST_ENTRIES} lines of entries")
        if len(line) > LONGEST_LINE_BYTES:
            raise self._too_long()
        self._lines += 1
        if not line.strip():
            return
        try:
            entry = _ENTRY.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Damaged(f"line {self._lines} of the entries is no arrival with a number: {error}") from None
        self.arrivals.append(entry.arrival)
        due = len(self.arrivals)
        if entry.number != due and self.problem is None:
            what = f"number {entry.number} is given twice" if entry.number < due else f"number {due} is not given"
            self.problem = f"{what}: it stands at line {self._lines} of the entries, where number {due} is due"

    def _too_long(self) -> Damaged:
        return Damaged(f"line {self._lines + 1} of the entries is longer than {LONGEST_LINE_BYTES} bytes")


class Source(NamedTuple):
    """Where the draw is: an event's address without a slash at its end, or a file."""

    url: str | None
    file: Path | None


def source_of(text: str) -> Source:
    """Return what URL|FILE on the command line means; raises UsageError."""
    if "://" not in text:
        return Source(None, Path(text))
    address = address_of(text, EXAMPLE)
    path = address.path.rstrip("/").removesuffix("/entries").removesuffix("/draw")
    if not EVENT_PATH.fullmatch(path):
        raise UsageError(f"{text!r} is not the address of an event, like {EXAMPLE}")
    return Source(address._replace(path=path).geturl(), None)


def read_draw(source: Source) -> PublishedDraw:
    """Return the draw without its entries; raises Unreachable, NotPermitted, UsageError or Damaged."""
    if source.url is not None:
        return asyncio.run(_fetch_draw(source.url))
    with _open(source.file) as file:
        return _decode_draw(_head(file))


def read_entries(source: Source, count: int) -> Entries:
    """Return the entries, of which there should be `count`; raises as `read_draw` does."""
    entries = Entries()
    with bar("reading") as progress:
        if source.url is not None:
            asyncio.run(_fetch_entries(source.url, entries, count, progress))
        else:
            with _open(source.file) as file:
                _head(file)
                while chunk := file.read(CHUNK_BYTES):
                    entries.feed(chunk)
                    progress(len(entries.arrivals), count)
    entries.finish()
    return entries


# ---- files ----------------------------------------------------------------------------------------------


def _open(path: Path | None) -> BinaryIO:
    assert path is not None
    return open_file(path)


def _head(file: BinaryIO) -> bytes:
    return file.readline(LONGEST_HEAD_BYTES + 1)


def _decode_draw(head: bytes) -> PublishedDraw:
    if len(head) > LONGEST_HEAD_BYTES:
        raise Damaged(f"what should be the draw is longer than {LONGEST_HEAD_BYTES} bytes")
    try:
        return _DRAW.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"what should be the draw cannot be read as one: {error}") from None


# ---- servers --------------------------------------------------------------------------------------------


async def _fetch_draw(url: str) -> PublishedDraw:
    return _decode_draw(await whole(f"{url}/draw", LONGEST_HEAD_BYTES))


async def _fetch_entries(url: str, entries: Entries, count: int, progress: Progress) -> None:
    def take(chunk: bytes) -> None:
        entries.feed(chunk)
        progress(len(entries.arrivals), count)

    await stream(f"{url}/draw/entries", take)
