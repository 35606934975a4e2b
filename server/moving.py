"""Moving a place to another device: a code that is good once, for five minutes, and needs no store.

The code names the place and the generation of its tokens; taking it over makes the next generation, so the code is
used up by what it does, across a restart and on any process that serves the visitor.
"""

from engine.actor import Holder
from engine.backend import Backend
from engine.errors import Refused
from engine.tokens import TRANSFER_CODE_LIFE_S, proof_of
from engine.views import Place
from server.mint import Mint
from server.wire import TransferAnswer

ENDED = frozenset(("completed", "expired", "left", "removed"))


class Moving:
    """Makes and takes codes. `url` is where visitors reach this server, "" where they know."""

    def __init__(self, backend: Backend, mint: Mint, url: str = "") -> None:
        self._backend = backend
        self._mint = mint
        self._url = url

    def offer(self, place: Place) -> TransferAnswer:
        """Return a code for the holder of a place; raises Refused where there is nothing left to move."""
        if not place.proven:
            raise Refused("read_only", "this place has moved to another device; this token only reads")
        if place.status in ENDED:
            raise Refused("conflict", f"this place is {place.status}", reason="ended")
        now_s = self._mint.now_s()
        code = self._mint.transfers.mint(place.event_id, place.user_id, place.arrival, place.generation, now_s)
        url = f"{self._url}/w/{place.event_id}?code={code}"
        return TransferAnswer(code, url, (now_s + TRANSFER_CODE_LIFE_S) * 1000)

    async def accept(self, event_id: str, code: str, key: str | None) -> Place:
        """Take the place over; with the same Idempotency-Key again the answer is the same. Raises Refused."""
        claims = self._mint.transfers.check(code, event_id, self._mint.now_s())
        holder = Holder(claims.arrival, claims.user_id, claims.generation)
        return await self._backend.transfer(event_id, holder, 0 if key is None else proof_of(key))
