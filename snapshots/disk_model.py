"""A disk as a crash sees it: what is durable, what is only cached, and every state a power cut may leave.

The model takes the freedoms that POSIX leaves to a file system, not only those that one of them uses:

* Unflushed writes of a file reach the disk sector by sector (512 bytes), in any amount: none, all, every
  prefix, all but any one sector, and the last sector torn at a byte. The size may have grown without them.
* A cut-off (`truncate`) that was not flushed by `fsync` may or may not have happened.
* Names made, renamed and removed in a folder since it was last flushed may each have happened or not.
* A folder that was not flushed into its parent may be gone with everything in it.
* After a failed flush, what was to be flushed never reaches the disk, though reads show it until the cache is
  dropped.

For several unflushed files at once one file is varied while the others are all old or all new. Longer rows of
unflushed names than SUBSETS_UP_TO are cut down to prefixes and single losses. So the enumeration is finite and
bounded by the number of operations, not exponential in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations, product
from random import Random

SECTOR_BYTES = 512
SUBSETS_UP_TO = 4
SECTORS_IN_FULL = 12


@dataclass(frozen=True, slots=True)
class Image:
    """What a crash left: the folders and the files with their content."""

    folders: frozenset[str] = frozenset()
    files: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class FileState:
    """One file: its durable content, its cached content, and what is known of the difference.

    `lost` tells that a flush has failed: then the cache is only for show.
    """

    durable: bytes = b""
    cached: bytearray = field(default_factory=bytearray)
    cut_pending: bool = False
    lost: bool = False

    def lose(self) -> None:
        """A flush failed: the cache keeps showing what will never be on the disk."""
        self.lost = True

    def drop_cache(self) -> None:
        """Show again what is on the disk, if the cache had been lying."""
        if self.lost:
            self.cached, self.lost = bytearray(self.durable), False

    @property
    def newest(self) -> bytes:
        """The content if everything reaches the disk that still can."""
        return self.durable if self.lost else bytes(self.cached)

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.cached):
            self.cached.extend(bytes(offset - len(self.cached)))
        self.cached[offset : offset + len(data)] = data

    def truncate(self, length: int) -> None:
        self.cut_pending = self.cut_pending or length < len(self.durable)
        del self.cached[length:]
        self.cached.extend(bytes(length - len(self.cached)))

    def flush(self, *, with_size: bool) -> None:
        """Make the content durable; a cut-off only `with_size`, which is what fsync does and fdatasync need not.

        A flush after a failed one succeeds, and makes nothing durable: that is how the kernel behaves.
        """
        if self.lost:
            return
        if self.cut_pending and not with_size:
            self.durable = bytes(self.cached) + self.durable[len(self.cached) :]
        else:
            self.durable, self.cut_pending = bytes(self.cached), False

    def crash_contents(self) -> set[bytes]:
        """Return every content this file may have after a crash."""
        old, new = self.durable, self.newest
        if old == new:
            return {old}
        contents = {old, new}
        if len(new) < len(old):
            contents.add(new + old[len(new) :])
        grown = old[: len(new)] + bytes(max(0, len(new) - len(old)))
        contents.add(grown)
        sectors = [at for at in range(0, len(new), SECTOR_BYTES) if _sector(grown, at) != _sector(new, at)]
        for count in _sampled(len(sectors)):
            contents.add(_with_sectors(grown, new, sectors[:count]))
            contents.add(_with_sectors(grown, new, sectors[:count] + sectors[count + 1 :]))
        if sectors:
            base = _with_sectors(grown, new, sectors[:-1])
            contents.update(_torn(base, new, sectors[-1]))
        return contents


def _sector(data: bytes, at: int) -> bytes:
    return data[at : at + SECTOR_BYTES]


def _sampled(count: int) -> list[int]:
    """Return 0..count-1, or its beginning, middle and end where that would be many."""
    if count <= SECTORS_IN_FULL:
        return list(range(count))
    third = SECTORS_IN_FULL // 3
    middle = count // 2
    return [*range(third), *range(middle, middle + third), *range(count - third, count)]


def _with_sectors(old: bytes, new: bytes, sectors: list[int]) -> bytes:
    data = bytearray(old)
    for at in sectors:
        data[at : at + SECTOR_BYTES] = _sector(new, at)
    return bytes(data)


def _torn(base: bytes, new: bytes, at: int) -> Iterator[bytes]:
    """Yield `base` with a part of the sector at `at` from `new`: its first byte, half, all but the last byte."""
    changed = [i for i in range(at, min(at + SECTOR_BYTES, len(new))) if base[i] != new[i]]
    for until in {changed[0] + 1, changed[len(changed) // 2], changed[-1]}:
        yield base[:at] + new[at:until] + base[until:]


@dataclass(frozen=True, slots=True)
class NameChange:
    """`new` now names the file `inode` (None: it names nothing), and `old`, if it did, no longer does."""

    new: str
    inode: int | None
    old: str | None = None

    def apply(self, names: dict[str, int]) -> None:
        if self.inode is None:
            names.pop(self.new, None)
            return
        if self.old is not None and names.get(self.old) == self.inode:
            del names[self.old]
        names[self.new] = self.inode


class DiskModel:
    """The durable and the cached state of one data folder; see the top of this module."""

    def __init__(self, image: Image) -> None:
        self.files: dict[int, FileState] = {}
        self.names: dict[str, int] = {}
        self.folders: set[str] = set(image.folders)
        self._durable_folders: set[str] = set(image.folders)
        self._pending: dict[str, list[NameChange]] = {}
        for name, content in image.files:
            inode = self._new_file()
            self.files[inode] = FileState(content, bytearray(content))
            self.names[name] = inode
        self._durable_names = dict(self.names)

    def _new_file(self) -> int:
        inode = len(self.files) + 1
        self.files[inode] = FileState()
        return inode

    def file(self, name: str) -> FileState:
        return self.files[self.names[name]]

    def create(self, name: str) -> int:
        """Make a new empty file, or empty the one of that name; return its inode."""
        if name in self.names:
            self.file(name).truncate(0)
        else:
            self._change(name, NameChange(name, self._new_file()))
        return self.names[name]

    def rename(self, old: str, new: str) -> None:
        assert old.rpartition("/")[0] == new.rpartition("/")[0], "renaming stays in one folder"
        self._change(new, NameChange(new, self.names[old], old))

    def unlink(self, name: str) -> None:
        self._change(name, NameChange(name, None))

    def _change(self, name: str, change: NameChange) -> None:
        change.apply(self.names)
        self._pending.setdefault(name.rpartition("/")[0], []).append(change)

    def sync_directory(self, folder: str) -> None:
        for change in self._pending.pop(folder, []):
            change.apply(self._durable_names)
        if folder == "":
            self._durable_folders = set(self.folders)

    def crash_images(self) -> set[Image]:
        """Return every state that a crash at this moment may leave."""
        images: set[Image] = set()
        kept_folders = {frozenset(self._durable_folders), frozenset(self.folders)}
        for names in self._crash_names():
            for contents in self._crash_contents(set(names.values())):
                for folders in kept_folders:
                    kept = {name: inode for name, inode in names.items() if name.rpartition("/")[0] in folders}
                    files = tuple(sorted((name, contents[inode]) for name, inode in kept.items()))
                    images.add(Image(folders, files))
        return images

    def crash_image(self, random: Random) -> Image:
        """Return one of the states that a crash at this moment may leave; here several files may differ at once."""
        names = dict(self._durable_names)
        for changes in self._pending.values():
            for change in random.choice(_choices(changes)):
                change.apply(names)
        folders = frozenset(random.choice((self._durable_folders, self.folders)))
        kept = [(name, inode) for name, inode in sorted(names.items()) if name.rpartition("/")[0] in folders]
        contents = {inode: random.choice(sorted(self.files[inode].crash_contents())) for _, inode in kept}
        return Image(folders, tuple((name, contents[inode]) for name, inode in kept))

    def image(self) -> Image:
        """Return the state a process sees that starts after this one was killed, the machine running on."""
        files = ((name, bytes(self.files[inode].cached)) for name, inode in self.names.items())
        return Image(frozenset(self.folders), tuple(sorted(files)))

    def _crash_names(self) -> Iterator[dict[str, int]]:
        for chosen in product(*(_choices(changes) for changes in self._pending.values())):
            names = dict(self._durable_names)
            for change in chain.from_iterable(chosen):
                change.apply(names)
            yield names

    def _crash_contents(self, inodes: set[int]) -> Iterator[dict[int, bytes]]:
        """Yield contents for the files: one varied through all its states, the others all old or all new."""
        dirty = [inode for inode in inodes if self.files[inode].newest != self.files[inode].durable]
        old = {inode: self.files[inode].durable for inode in inodes}
        new = {inode: self.files[inode].newest for inode in inodes}
        yield old
        yield new
        for inode in dirty:
            for content in self.files[inode].crash_contents():
                yield {**old, inode: content}
                yield {**new, inode: content}


def _choices(changes: list[NameChange]) -> list[tuple[NameChange, ...]]:
    """Return the parts of a row of name changes that may have reached the disk."""
    count = len(changes)
    if count <= SUBSETS_UP_TO:
        return [part for size in range(count + 1) for part in combinations(changes, size)]
    prefixes = [tuple(changes[:size]) for size in range(count + 1)]
    return prefixes + [tuple(changes[:i] + changes[i + 1 :]) for i in range(count)]
