"""What a process remembers about itself and the others: DATA/node.json, small, written whole and flushed.

It is a convenience and no authority: without it a process asks fewer others who leads, and takes a new name. So does
one whose data folder is a copy: two of one name would be one server for the witness.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.errors import StorageFailed

NAME = "node.json"
PEERS_LIMIT = 64


class _Remembered(msgspec.Struct):
    """`inode` is that of the file itself: in a folder that was copied it is another, and so must the name be."""

    node_id: str
    peers: list[str] = []
    inode: int = 0


def new_node_id() -> str:
    """Return a name that no other process has."""
    return secrets.token_hex(8)


class Peers:
    """The file, or for an edge (`data` is None) only what this process remembers."""

    def __init__(self, data: Path | None) -> None:
        self._path = None if data is None else data / NAME
        self._known = _Remembered(new_node_id())
        if self._path is not None and self._path.exists():
            with suppress(msgspec.DecodeError, OSError):
                known = msgspec.json.decode(self._path.read_bytes(), type=_Remembered)
                is_copy = known.inode != self._path.stat().st_ino
                self._known = _Remembered(new_node_id(), known.peers) if is_copy else known

    @property
    def node_id(self) -> str:
        """The name of this process, the same after every start."""
        return self._known.node_id

    def load(self) -> list[str]:
        """Return where the others were when this was saved."""
        return list(self._known.peers)

    def save(self, urls: Sequence[str]) -> None:
        """Remember where the others are; raises StorageFailed."""
        self._known.peers = list(urls)[-PEERS_LIMIT:]
        if self._path is None:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                self._known.inode = os.fstat(descriptor).st_ino
                file.write(msgspec.json.encode(self._known))
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, self._path)
        except OSError as error:
            raise StorageFailed(f"cannot write {self._path}: {error.strerror}") from error
