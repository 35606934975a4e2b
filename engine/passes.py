"""Passes: proof of admission, signed with Ed25519 so that a site checks it with a public key and holds no secret.

A pass is minted whenever it is handed out, as often as the visitor asks. What makes all of these one admission is
`jti`: the keyed hash of event, number and release, the same in every copy, and an admission is redeemed once. Who
holds no key cannot tell from one jti what another will be.

`exp` and `nbf` are for sites that trust a pass without asking. Here they must be there and are not gone by: the room
decides whether a pass is still good, because its clocks stand still over a pause and an outage, and no jump of the
wall clock moves them.

The claims take at most 400 bytes. As a compact JWT, with header and signature and in base64url, a pass with the ids and
the issuer of this server takes 379 bytes before the event, which counts 8/3 times (it is `aud` and `ev`): so an event
id of 7 characters keeps it within 400 bytes, one of 20 makes it 432, and numbers at their largest add 20.
"""

from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated

import msgspec

from engine.errors import Refused
from engine.identities import subject_of
from engine.signatures import Kind, Natural, key_set_of, public_of, sign, signing_key, verified, verifying_keys
from engine.tokens import ahead_of

PASS = Kind("pass", "stanchion-pass+jwt", "bad_token", 1024)
RELEASES = 2
CACHED_PASSES = 4096
SHORTEST_ID_KEY = 32
LONGEST_ISSUER_BYTES = 200
_Subject = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{22}$")]
_PassId = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{11}$")]


class PassClaims(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a pass says: `sub` is who (subject_of), `num` the queue number, times are Unix seconds."""

    iss: str
    aud: str
    sub: _Subject
    ev: str
    num: Natural
    jti: _PassId
    iat: Natural
    nbf: Natural
    exp: Natural
    epoch: Natural


_encode = msgspec.json.Encoder().encode
_CLAIMS = msgspec.json.Decoder(PassClaims)


def pass_id(key: bytes, event_id: str, number: int, release: int) -> str:
    """Return the jti of an admission: the `release`-th (1, 2) of the visitor with this number."""
    facts = event_id.encode() + number.to_bytes(8, "big") + release.to_bytes(1, "big")
    return _text(blake2b(facts, digest_size=8, key=key[:64], person=b"stanchion passid").digest())


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


class Passes:
    """Mints with one key and checks with all: `signing` is (key id, private seed), `public` key id → public key.

    The keys are raw, 32 bytes each; `public` need not list the signing key. `id_key` makes the jti and must outlive
    every rotation of the others; `issuer` is the `iss` of what is minted, and the only one that is taken.
    Raises ValueError for keys that are none and an issuer too long for PASS.longest.
    """

    def __init__(self, signing: tuple[str, bytes], public: Mapping[str, bytes], id_key: bytes, issuer: str) -> None:
        if len(id_key) < SHORTEST_ID_KEY:
            raise ValueError(f"the pass id key is shorter than {SHORTEST_ID_KEY} bytes")
        if len(issuer.encode()) > LONGEST_ISSUER_BYTES:
            raise ValueError(f"the issuer is longer than {LONGEST_ISSUER_BYTES} bytes")
        key_id, seed = signing
        self._signing = signing_key(key_id, seed)
        own = public_of(seed)
        if public.get(key_id, own) != own:
            raise ValueError(f"the public key {key_id!r} does not belong to the private one")
        self._public = verifying_keys({**public, key_id: own})
        self._id_key = id_key
        self._issuer = issuer
        self._checked: OrderedDict[str, PassClaims] = OrderedDict()

    def mint(self, event_id: str, user_id: str, number: int, release: int, epoch: int, iat_s: int, exp_s: int) -> str:
        """Return the pass of an admission; about 60 µs."""
        claims = PassClaims(
            iss=self._issuer,
            aud=event_id,
            sub=subject_of(event_id, user_id),
            ev=event_id,
            num=number,
            jti=pass_id(self._id_key, event_id, number, release),
            iat=iat_s,
            nbf=iat_s,
            exp=exp_s,
            epoch=epoch,
        )
        return sign(PASS, self._signing, _encode(claims))

    def check(self, token: str, event_id: str, epoch: int) -> PassClaims:
        """Return the claims of a pass for this event; raises Refused("bad_token") saying what is wrong.

        About 170 µs the first time a pass is seen and far below one after.
        """
        claims = self._checked.get(token) or self._verified(token)
        if claims.aud != event_id or claims.ev != event_id:
            raise _bad("belongs to another event")
        if claims.epoch > epoch:
            raise ahead_of("pass")
        return claims

    def release_of(self, claims: PassClaims) -> int | None:
        """Return which release of its visitor a pass stands for; None when its jti was made with another key."""
        for release in range(1, RELEASES + 1):
            if claims.jti == pass_id(self._id_key, claims.ev, claims.num, release):
                return release
        return None

    def jwks(self) -> dict[str, object]:
        """Return the public keys as a JWKS: everything a site needs to check a pass by itself."""
        return key_set_of(self._public)

    def _verified(self, token: str) -> PassClaims:
        claims = verified(PASS, token, self._public, _CLAIMS)
        if claims.iss != self._issuer:
            raise _bad("was issued by another server")
        self._checked[token] = claims
        if len(self._checked) > CACHED_PASSES:
            self._checked.popitem(last=False)
        return claims


def _bad(problem: str) -> Refused:
    return PASS.refused(problem)
