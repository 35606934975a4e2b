"""The key ring between primary and followers: sealed on its way, believed by all before it signs.

A follower has to check what the primary signed, and sign as the primary would once it is one, so it has the same ring.
The ring travels sealed (ChaCha20-Poly1305) under a key made of the replication key that opened the link. A change is
written, handed to every follower, confirmed by each (or the link to it is cut, and it takes the ring with its next
welcome), and only then believed by the primary: nobody ever meets a signature of a key it has not seen.

Who came with a replication key that a change ends is not told of the change, and has to come with another key. That
keeps out whoever has the text of an old key; it takes nothing from a former follower, which had the whole ring.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from engine.errors import BadConfiguration, Refused
from server.key_files import KeyFolder, check_set, ring_from_bytes, ring_to_bytes
from server.key_kinds import Key
from server.key_ring import Change, KeyRing
from server.replication.link import LinkClosed
from server.replication.messages import Ring

NONCE_BYTES = 12

# Given the number of a ring and what makes it for the holder of a key (None: that key ends), returns once every
# follower believes it or was sent away.
HandOn = Callable[[int, Callable[[str], Ring | None]], Awaitable[None]]

log = structlog.get_logger("stanchion.keys")


def seal_ring(keys: Sequence[Key], key: str) -> bytes:
    """Return a ring that only holders of a replication key (given as its digest) can open."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, ring_to_bytes(keys), None)


def open_ring(sealed: bytes, key: str, now_ms: int) -> list[Key]:
    """Return the keys of a sealed ring; raises Refused where it was not sealed under this key, or is no whole ring."""
    place = "the ring of the primary"
    try:
        content = _cipher(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        keys = ring_from_bytes(content, place)
        check_set(place, keys, now_ms)
    except (InvalidTag, ValueError):
        raise Refused("forbidden", "the ring was not sealed under this replication key") from None
    except BadConfiguration as error:
        raise Refused("forbidden", str(error)) from None
    return keys


def _cipher(key: str) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(blake2b(key.encode(), digest_size=32, person=b"stanchion ring").digest())


class SharedKeys:
    """The ring of this process as replication sees it: `ring` exists from the first welcome on.

    `shown` is the digest of the replication key this process was started with ("" for a primary, which shows what is
    in its ring), `folder` where the ring is kept (None for an edge).
    """

    def __init__(self, ring: KeyRing | None, shown: str, folder: Path | None, wall_ms: Callable[[], int]) -> None:
        self._ring = ring
        self._shown = shown
        self._nobody = secrets.token_hex(32)
        self._folder = None if folder is None else KeyFolder(folder)
        self._wall_ms = wall_ms
        self._hand_on: HandOn | None = None
        self._coming: tuple[int, Sequence[Key]] | None = None
        self._is_ahead = False

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

    # ---- links ----------------------------------------------------------------------------------------

    def handshake_keys(self) -> list[str]:
        """Return the digests of the replication keys that are shown to others, and believed of them.

        The key this process was started with may be newer than its ring; it counts until this process leads, when the
        ring alone does. There is always one: where no key is believed, it is one that nobody has.
        """
        known = [] if self._ring is None else self._ring.all()
        kept = [key for key in known if key.kind == "replication" and key.digest]
        believed = [key.digest or "" for key in kept if key.is_live(self._wall_ms())]
        is_news = self._hand_on is None and self._shown not in [key.digest for key in kept]
        shown = [self._shown] if self._shown and (is_news or self._shown in believed) else []
        return [*dict.fromkeys(shown + believed)] or [self._nobody]

    # ---- as a follower ----------------------------------------------------------------------------------

    def take(self, sealed: bytes, key: str) -> None:
        """Write a ring that was handed on, and believe it; raises LinkClosed where it is none, StorageFailed.

        Which texts stand in files is each server's own affair: here those count that this folder holds.
        """
        try:
            handed = open_ring(sealed, key, self._wall_ms())
        except Refused as refused:
            log.error("ring_not_taken", problem=refused.detail)
            raise LinkClosed(refused.detail) from None
        texts = frozenset[tuple[str, str]]() if self._folder is None else self._folder.digests_in_files()
        keys = [replace(key, in_file=(key.kind, key.digest) in texts) for key in handed]
        if self._ring is None:
            ring = KeyRing(keys, self._wall_ms, Forgetful() if self._folder is None else self._folder)
            ring.install(keys)
            self._ring = ring
        elif self._is_ahead or keys != self._ring.all():
            self._ring.install(keys)
        self._is_ahead = False

    # ---- as the primary -----------------------------------------------------------------------------------

    def lead(self, hand_on: HandOn | None) -> None:
        """Changes are handed on with this from now on; None: this process may not change keys."""
        self._hand_on = hand_on

    def check_leading(self) -> None:
        """Raise Refused where keys are not this process's to change."""
        if self._hand_on is None:
            raise Refused("not_primary", "keys are changed at the primary", retry_after_s=1)

    def sealed(self, key: str) -> Ring:
        """Return the ring, with a change that is being handed on, sealed for whoever opened a link with this key."""
        if self._coming is not None and (ring := self._coming_for(key)) is not None:
            return ring
        return Ring(self.ring.generation, seal_ring(self.ring.all(), key))

    async def share(self, change: Change) -> None:
        """Hand a change that was written to every follower; returns when all believe it.

        Raises Refused where this process stopped to lead meanwhile: the change is not to be believed then, and what was
        written of it is put right by the ring of the next primary.
        """
        self.check_leading()
        hand_on, self._is_ahead = self._hand_on, True
        assert hand_on is not None
        self._coming = self.ring.generation + 1, change.keys
        try:
            await hand_on(self._coming[0], self._coming_for)
        finally:
            self._coming = None
        if self._hand_on is not hand_on:
            detail = "this server stopped to be the primary while it changed keys; look at the new primary for whether"
            raise Refused("not_primary", f"{detail} it has the change", retry_after_s=1)
        self._is_ahead = False

    def _coming_for(self, key: str) -> Ring | None:
        """Return the ring that is being handed on, for whoever opened a link with a key; None if that ends by it."""
        assert self._coming is not None
        generation, keys = self._coming
        now_ms = self._wall_ms()
        goes_on = any(other.kind == "replication" and other.digest == key and other.is_live(now_ms) for other in keys)
        return Ring(generation, seal_ring(keys, key)) if goes_on else None


class Forgetful:
    """A RingStore of a process without a data folder."""

    def save(self, keys: Sequence[Key], key: Key, text: str) -> None:
        """Keep nothing."""

    def install(self, keys: Sequence[Key]) -> None:
        """Keep nothing."""
