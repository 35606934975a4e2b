"""What a process that holds a line with others stands on: all of it given from outside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from server.replication.following import LinkOpener
from server.replication.key_sharing import HandOn
from server.replication.leading import Clocks
from server.replication.messages import Ring
from server.replication.settings import ReplicationSettings
from server.replication.witness import Witness
from snapshots.options import JournalOptions
from snapshots.storage import Storage


class PeerStore(Protocol):
    """Where the URLs of the others are remembered."""

    def load(self) -> list[str]:
        """Return what was saved last."""

    def save(self, urls: list[str]) -> None:
        """Remember these."""


class KeyPort(Protocol):
    """The key ring, as replication sees it."""

    @property
    def draw_key(self) -> bytes:
        """What the secrets of draws are made of."""

    def handshake_keys(self) -> list[str]:
        """Return what a peer may show that it holds, the one this process shows first."""

    def sealed(self, key: str) -> Ring:
        """Return the ring as it is handed on to whoever opened a link with this key."""

    def take(self, sealed: bytes, key: str) -> None:
        """Believe a ring that was handed on."""

    def lead(self, hand_on: HandOn | None) -> None:
        """Changes are handed on with this from now on; None: this process may not change keys."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a process stands on. `storage` is None for an edge, `scratch` is where it may put a snapshot meanwhile.

    `open_witness` gets the id of the cluster. `follow` is where to begin as a follower, None to begin as primary.
    """

    settings: ReplicationSettings
    storage: Storage | None
    scratch: Storage | None
    options: JournalOptions
    open_link: LinkOpener
    open_witness: Callable[[bytes], Witness] | None
    follow: str | None
    peers: PeerStore
    keys: KeyPort
    clocks: Clocks
