"""Enqueue tokens: the shop's word on who may join, at which level, and for how many.

A shop signs one with a key of its own, registered here by its public half, so this server cannot make any. Claims:

    aud (the event)  sub  jti  exp (≤ 10 min ahead)  and, if wanted, priority (0–9)  group  size (1–20)  nbf

Claims beyond these (iss, iat, …) are passed over, as RFC 7519 asks. Which jti has been used is for the room.
"""

from collections.abc import Mapping, Set
from typing import Annotated, NamedTuple

import msgspec

from engine.errors import Refused
from engine.identities import LONGEST_IDENTITY_BYTES, is_identity
from engine.signatures import Kind, verified, verifying_key

ENQUEUE = Kind("enqueue token", "stanchion-enqueue+jwt", "bad_enqueue_token", 4096)
LONGEST_LIFE_S = 600
LEEWAY_S = 5
_Instant = Annotated[float, msgspec.Meta(ge=0, lt=2**53)]
_OneEvent = Annotated[list[str], msgspec.Meta(min_length=1, max_length=1)]


class Enqueue(NamedTuple):
    """What a shop says: who (`sub`) may join, as which group of `size`, at which `priority`; `exp_s` Unix seconds."""

    sub: str
    jti: str
    priority: int
    group: str | None
    size: int
    exp_s: int

    @property
    def identity(self) -> str:
        """Return who holds the place: the group where there is one, so that it has one place between them."""
        return self.group or self.sub


class _Claims(msgspec.Struct, frozen=True):
    aud: str | _OneEvent
    sub: str
    jti: str
    exp: _Instant
    nbf: _Instant = 0
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0
    group: str | None = None
    size: Annotated[int, msgspec.Meta(ge=1, le=20)] = 1


_CLAIMS = msgspec.json.Decoder(_Claims)


class EnqueueTokens:
    """Checks what shops sign: `keys` maps key id → (raw public key of 32 bytes, event ids, or None for all events)."""

    def __init__(self, keys: Mapping[str, tuple[bytes, Set[str] | None]]) -> None:
        self._public = {key_id: verifying_key(key_id, public) for key_id, (public, _) in keys.items()}
        self._events = {key_id: events for key_id, (_, events) in keys.items()}

    def check(self, token: str, event_id: str, now_s: int) -> Enqueue:
        """Return what a token says about joining this event; raises Refused("bad_enqueue_token") saying what is bad."""
        keys = {key_id: key for key_id, key in self._public.items() if self._may_sign(key_id, event_id)}
        claims = verified(ENQUEUE, token, keys, _CLAIMS)
        if claims.aud not in (event_id, [event_id]):
            raise _bad("is for another event: aud must be this one's id")
        _check_times(claims, now_s)
        _check_names(claims)
        return Enqueue(claims.sub, claims.jti, claims.priority, claims.group, claims.size, int(claims.exp))

    def _may_sign(self, key_id: str, event_id: str) -> bool:
        events = self._events[key_id]
        return events is None or event_id in events


def _check_times(claims: _Claims, now_s: int) -> None:
    if claims.exp + LEEWAY_S <= now_s:
        raise _bad("has expired")
    if claims.exp > now_s + LONGEST_LIFE_S + LEEWAY_S:
        raise _bad(f"lives too long: exp must be at most {LONGEST_LIFE_S} s ahead")
    if claims.nbf > now_s + LEEWAY_S:
        raise _bad("is not good yet: nbf lies ahead")


def _check_names(claims: _Claims) -> None:
    for name, text in (("sub", claims.sub), ("jti", claims.jti), ("group", claims.group)):
        if text is not None and not is_identity(text):
            raise _bad(f"has a bad {name}: 1 to {LONGEST_IDENTITY_BYTES} bytes of UTF-8 without control characters")
    if claims.size > 1 and claims.group is None:
        raise _bad("has a size and no group")


def _bad(problem: str) -> Refused:
    return ENQUEUE.refused(problem)
