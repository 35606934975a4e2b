"""The key ring between primary and followers: sealed on its way, believed by all before it signs.

A follower has to check what the primary signed, and sign as the primary would once it is one, so it has the same ring.
The ring travels sealed (ChaCha20-Poly1305) under a key made of the replication key that opened the link. A change is
written, handed to every follower, confirmed by each (or the link to it is cut, and it takes the ring with its next
welcome), and only then believed by the primary: nobody ever meets a signature of a key it has not seen.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from engine.errors import BadConfiguration, Refused
from server.key_files import KeyFolder, ring_from_bytes, ring_to_bytes
from server.key_kinds import Key
from server.key_ring import Change, KeyRing, digest_of
from server.replication.messages import Ring

NONCE_BYTES = 12

HandOn = Callable[[Callable[[str], Ring]], Awaitable[None]]


def seal_ring(keys: Sequence[Key], key: str) -> bytes:
    """Return a ring that only holders of a replication key (given as its digest) can open."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, ring_to_bytes(keys), None)


def open_ring(sealed: bytes, key: str) -> list[Key]:
    """Return the keys of a sealed ring; raises Refused where it was not sealed under this key, or is no ring."""
    try:
        content = _cipher(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        return ring_from_bytes(content, "the ring of the primary")
    except (InvalidTag, ValueError):
        raise Refused("forbidden", "the ring was not sealed under this replication key") from None
    except BadConfiguration as error:
        raise Refused("forbidden", str(error)) from None


def _cipher(key: str) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(blake2b(key.encode(), digest_size=32, person=b"stanchion ring").digest())


class SharedKeys:
    """The ring of this process as replication sees it: `ring` exists from the first welcome on.

    `shown` is the digest of the replication key this process opens links with, `folder` where the ring is kept (None
    for an edge).
    """

    def __init__(self, ring: KeyRing | None, shown: str, folder: Path | None, wall_ms: Callable[[], int]) -> None:
        self._ring = ring
        self._shown = shown
        self._folder = None if folder is None else KeyFolder(folder)
        self._wall_ms = wall_ms
        self._hand_on: HandOn | None = None
        self._is_leading = False

    @property
    def has_ring(self) -> bool:
        """Whether there are keys yet."""
        return self._ring is not None

    @property
    def ring(self) -> KeyRing:
        """The ring; there must be one."""
        assert self._ring is not None, "nobody has handed a ring to this follower yet"
        return self._ring

    def replace(self, ring: KeyRing) -> None:
        """Take the ring as it was read once the data folder was locked."""
        self._ring = ring

    @property
    def draw_key(self) -> bytes:
        """What the secrets of draws are made of."""
        return self.ring.draw_key

    def handshake_keys(self) -> list[str]:
        """Return what a peer may show that it holds, the one this process shows first."""
        if self._ring is None:
            return [self._shown]
        believed = [key.digest for key in self._ring.live("replication") if key.digest]
        return sorted(believed, key=lambda key: key != self._shown)

    def sealed(self, key: str) -> Ring:
        """Return the ring, sealed for whoever opened a link with this key."""
        return Ring(self.ring.generation, seal_ring(self.ring.all(), key))

    def take(self, sealed: bytes, key: str) -> None:
        """Believe a ring that was handed on; raises Refused, StorageFailed."""
        keys = [replace(handed, in_file=False) for handed in open_ring(sealed, key)]
        if self._ring is None:
            store = self._folder if self._folder is not None else Forgetful()
            ring = KeyRing(keys, self._wall_ms, store)
            ring.install(keys)
            self._ring = ring
        elif keys != self._ring.all():
            self._ring.install(keys)

    def lead(self, hand_on: HandOn | None) -> None:
        """Changes are handed on with this from now on; None: this process may not change keys."""
        self._hand_on, self._is_leading = hand_on, hand_on is not None

    async def share(self, change: Change) -> None:
        """Hand a change that was written to every follower; returns when all believe it. Raises Refused."""
        if self._hand_on is not None:
            generation = self.ring.generation + 1
            await self._hand_on(lambda key: Ring(generation, seal_ring(change.keys, key)))

    def check_leading(self) -> None:
        """Raise Refused where keys are not this process's to change."""
        if not self._is_leading:
            raise Refused("not_primary", "keys are changed at the primary", retry_after_s=1)


class Forgetful:
    """A RingStore of a process without a data folder."""

    def save(self, keys: Sequence[Key], key: Key, text: str) -> None:
        """Keep nothing."""

    def install(self, keys: Sequence[Key]) -> None:
        """Keep nothing."""


def shown_by(text: str) -> str:
    """Return what a process shows that holds a replication key."""
    return digest_of(text)
