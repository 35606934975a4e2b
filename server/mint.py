"""The mint: everything this server signs or checks, made of the keys of the ring and made anew when they change."""

from collections.abc import Callable

from engine.enqueue import EnqueueTokens
from engine.passes import Passes
from engine.receipts import Receipts
from engine.tokens import QueueTokens, SessionTokens, TransferCodes
from server.key_ring import KeyRing

ISSUER = "stn"  # not the public URL: it may change, and what was signed before must go on to be good


class Mint:
    """Tokens of every kind. `now_ms` is Unix time that no step of the wall clock moves."""

    queue: QueueTokens
    transfers: TransferCodes
    sessions: SessionTokens
    passes: Passes
    receipts: Receipts
    enqueue: EnqueueTokens

    def __init__(self, ring: KeyRing, now_ms: Callable[[], int]) -> None:
        self._ring = ring
        self.now_ms = now_ms
        self._take_keys()
        ring.on_change(self._take_keys)

    def now_s(self) -> int:
        """Return Unix time in whole seconds."""
        return self.now_ms() // 1000

    def _take_keys(self) -> None:
        ring = self._ring
        secrets, signing = ring.secrets("queue")
        self.queue = QueueTokens(secrets, signing)
        self.transfers = TransferCodes(secrets, signing)
        self.sessions = SessionTokens(*ring.secrets("session"))
        key_id, seed, public = ring.pass_keys(self.now_ms())
        self.passes = Passes((key_id, seed), public, ring.pass_id_key, ISSUER)
        self.receipts = Receipts((key_id, seed), ISSUER)
        self.enqueue = EnqueueTokens(ring.enqueue_keys())
        self._rotated_s = ring.signing("queue").signs_from_ms // 1000 if len(secrets) > 1 else 0

    def is_of_an_old_key(self, issued_s: int) -> bool:
        """Return whether a queue token may be from before a rotation that is still under way."""
        return issued_s <= self._rotated_s
