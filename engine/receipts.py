"""Receipts: the server's signed word that somebody joined, when, and behind how many.

Whoever holds one can show later that the line was kept as promised: `arrival` and `number` order the joins of an event,
`lsn` says where in the log this one stands. Signed with the key of the passes, as a kind of its own, so that a receipt
admits nobody, and checked with nothing but the public keys: `stanchion verify --receipt` needs no server.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from engine.errors import Refused
from engine.identities import subject_of
from engine.signatures import Kind, Natural, keys_of_set, sign, signing_key, verified

RECEIPT = Kind("receipt", "stanchion-receipt+jwt", "bad_token", 1024)


class Join(NamedTuple):
    """The facts of a join that a receipt states; `number` is None in the lobby, `lsn` that of the join's record."""

    event_id: str
    user_id: str
    arrival: int
    number: int | None
    joined_ms: int
    lsn: int


class ReceiptClaims(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """What a receipt says: `sub` is who (subject_of), `iat` Unix seconds, `number` None in the lobby."""

    iss: str
    ev: str
    sub: str
    arrival: Natural
    joined_ms: Natural
    lsn: Natural
    epoch: Natural
    iat: Natural
    number: Natural | None = None


_encode = msgspec.json.Encoder().encode
_CLAIMS = msgspec.json.Decoder(ReceiptClaims)


class Receipts:
    """Signs receipts with the signing key of the passes: (key id, private seed of 32 bytes)."""

    def __init__(self, signing: tuple[str, bytes], issuer: str) -> None:
        self._signing = signing_key(*signing)
        self._issuer = issuer

    def mint(self, join: Join, epoch: int, iat_s: int) -> str:
        """Return the receipt of a join; about 60 µs."""
        claims = ReceiptClaims(
            iss=self._issuer,
            ev=join.event_id,
            sub=subject_of(join.event_id, join.user_id),
            arrival=join.arrival,
            joined_ms=join.joined_ms,
            lsn=join.lsn,
            epoch=epoch,
            iat=iat_s,
            number=join.number,
        )
        return sign(RECEIPT, self._signing, _encode(claims))


def check_receipt(receipt: str, key_set: Mapping[str, object]) -> ReceiptClaims:
    """Return what a receipt says, by the keys of a JWKS; raises Refused("bad_token"), or "bad_request" for the JWKS."""
    try:
        keys = keys_of_set(key_set)
    except ValueError as error:
        raise Refused("bad_request", str(error)) from None
    return verified(RECEIPT, receipt, keys, _CLAIMS)
