"""Keys: made on the first start, read on every other.

What kinds there are is said in `key_kinds`, how they change in `key_ring`, how they lie on the disk in
`key_files`; `gate` asks callers for them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadConfiguration
from server.key_files import KeyFolder
from server.key_ring import KeyRing

FOLDER = "keys"
TURN_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The ring of a data folder, and the keys that stand in files ("" for a kind whose file key was revoked).

    It has no repr, so that none of them strays into a log.
    """

    ring: KeyRing
    admin: str
    site: str
    replication: str


def load_or_create(data: Path, wall_ms: Callable[[], int]) -> tuple[Keys, bool]:
    """Return the keys of a data folder and whether they were just made. `wall_ms` is Unix time in milliseconds.

    Raises BadConfiguration for keys that are weak, readable by others, incomplete, or gone from under a log.
    """
    folder = KeyFolder(data / FOLDER)
    fresh = folder.is_empty()
    if fresh:
        if not folder.place.is_dir() and (data / "log").is_dir():
            raise BadConfiguration(
                f"{folder.place} is missing beside a log: without it every queue token is void. Put it back, or, to "
                f"go on with new keys, make an empty folder {folder.place}"
            )
        folder.create(wall_ms())
    return _keys(folder, wall_ms), fresh


def read_key_file(path: Path) -> str:
    """Return the replication key in a file; raises BadConfiguration."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise BadConfiguration(f"cannot read the replication key from {path}: {reason}") from None
    if not text.startswith("stn_replication_") or len(text.split()) != 1:
        raise BadConfiguration(f"{path} does not hold one line with a replication key (stn_replication_…)")
    return text


def stored_ring(data: Path, wall_ms: Callable[[], int]) -> KeyRing | None:
    """Return the ring a follower was handed and kept, None where there is none yet. Raises BadConfiguration.

    Beside it no text of a key has to be there; an operator may keep `replication.key` there before there is a ring.
    """
    folder = KeyFolder(data / FOLDER)
    return KeyRing(folder.load(wall_ms()), wall_ms, folder) if folder.has_ring() else None


def settle(data: Path, wall_ms: Callable[[], int]) -> Keys:
    """Return the keys as they are now that the data folder is locked, and finish what a kill left of a change.

    Before that, `stanchion keys --data` may have changed them after they were read.
    """
    folder = KeyFolder(data / FOLDER)
    folder.settle(folder.load(wall_ms()))
    return _keys(folder, wall_ms)


def _keys(folder: KeyFolder, wall_ms: Callable[[], int]) -> Keys:
    keys = folder.load(wall_ms())
    texts = folder.texts(keys)
    ring = KeyRing(keys, wall_ms, folder)
    return Keys(ring, texts.get("admin", ""), texts.get("site", ""), texts.get("replication", ""))


def open_ring(data: Path, wall_ms: Callable[[], int]) -> KeyRing:
    """Return the ring of a locked data folder whose KIND.key files may be lost, as where one of them is to be replaced.

    Raises BadConfiguration.
    """
    folder = KeyFolder(data / FOLDER)
    if folder.is_empty():
        raise BadConfiguration(f"{folder.place} holds no keys; they are made by the first start of the server")
    keys = folder.load(wall_ms())
    folder.settle(keys)
    return KeyRing(keys, wall_ms, folder)


async def watch(ring: KeyRing) -> None:
    """Let the ring notice when a key's turn or end has come; runs until it is cancelled."""
    while True:
        await asyncio.sleep(TURN_INTERVAL_S)
        ring.turn()
