"""Keyed tokens: what only this server checks. Queue token, session token, transfer code.

One secret is enough for these, and a queue token is minted for every join and checked for every poll, so they are
made of the two cheapest sound parts: a keyed BLAKE2b (RFC 7693, the MAC is part of the hash) over compact claims.
HS256 through OpenSSL costs three times as much on the join path. Form:

    base64url( version (1 byte) ‖ key id (4 bytes) ‖ tag (20 bytes) ‖ claims (a JSON array) )

The tag covers version, key id and claims under the personalisation of the kind, so no kind can stand in for another
even where two are given the same secret, and it is compared before anything behind it is read. What others check as
well (passes, receipts) is signed instead: engine/signatures.py.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Generic, TypeVar

import msgspec

from engine.errors import Refused

QUEUE_TOKEN_LIFE_S = 24 * 3600
TRANSFER_CODE_LIFE_S = 300
LONGEST_TOKEN = 1024
SHORTEST_SECRET = 32
KEY_ID_BYTES = 4
TAG_BYTES = 20
_VERSION = b"\x01"
_TAG_AT = len(_VERSION) + KEY_ID_BYTES
_CLAIMS_AT = _TAG_AT + TAG_BYTES
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/   ")
# By length modulo 4: what the last character may be, so that no two texts stand for the same bytes.
_LAST = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
    "",
    "AQgw",
    "AEIMQUYcgkosw048",
)

Claims = TypeVar("Claims", bound=msgspec.Struct)


class QueueToken(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The claims of a place: who, where in line, of which holder (`generation`), when (Unix seconds).

    `number` is 0 in the lobby, where nobody has one yet.
    """

    event_id: str
    user_id: str
    arrival: int
    number: int
    generation: int
    epoch: int
    issued_s: int

    def past_half_life(self, now_s: int) -> bool:
        """Return whether an answer should carry a fresh token."""
        return now_s - self.issued_s > QUEUE_TOKEN_LIFE_S // 2


class SessionToken(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The claims of an admission the site has redeemed: whose, by which pass, and when it ends at the latest."""

    event_id: str
    user_id: str
    arrival: int
    number: int
    jti: str
    epoch: int
    issued_s: int
    limit_s: int


class TransferCode(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The claims of a code that moves a place to another device; good while the place is of `generation`."""

    event_id: str
    user_id: str
    arrival: int
    generation: int
    issued_s: int


_encode_claims = msgspec.json.Encoder().encode


class _Kind(Generic[Claims]):
    """One kind of keyed token: mints with one secret and believes all, under `person` and no other."""

    def __init__(
        self, name: str, into: type[Claims], person: bytes, secrets: Mapping[str, bytes], signing: str
    ) -> None:
        for key_id, secret in secrets.items():
            if len(secret) < SHORTEST_SECRET:
                raise ValueError(f"the key {key_id!r} of {name}s is shorter than {SHORTEST_SECRET} bytes")
        # A copy of a MAC that has its key and head costs half of a new one.
        self._mac_of_head = {
            _head(key_id): blake2b(_head(key_id), digest_size=TAG_BYTES, key=secret[:64], person=person)
            for key_id, secret in secrets.items()
        }
        if len(self._mac_of_head) < len(secrets):
            raise ValueError(f"two keys of {name}s have ids that cannot be told apart")
        self._head = _head(signing)
        self._mac = self._mac_of_head[self._head]
        self._decode = msgspec.json.Decoder(into).decode
        self._foreign = f"is no {name} of this server"

    def mint(self, claims: Claims) -> str:
        """Return the token of these claims."""
        body = _encode_claims(claims)
        mac = self._mac.copy()
        mac.update(body)
        raw = self._head + mac.digest() + body
        return b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL).decode("ascii")

    def open(self, token: str) -> Claims:
        """Return the claims of a token that this server minted; raises Refused("bad_token")."""
        raw = _bytes_of(token)
        keyed = self._mac_of_head.get(raw[:_TAG_AT])
        if keyed is None:
            raise _bad(self._foreign)
        body = raw[_CLAIMS_AT:]
        mac = keyed.copy()
        mac.update(body)
        if not compare_digest(raw[_TAG_AT:_CLAIMS_AT], mac.digest()):
            raise _bad("has a bad signature")
        return self._decode(body)


class QueueTokens:
    """Proofs of a place in line: `secrets` maps key id → secret, all are believed, `signing` names what mints."""

    def __init__(self, secrets: Mapping[str, bytes], signing: str) -> None:
        self._kind = _Kind("queue token", QueueToken, b"stanchion queue", secrets, signing)

    def mint(
        self, event_id: str, user_id: str, arrival: int, number: int, generation: int, epoch: int, now_s: int
    ) -> str:
        """Return a token for a place, good for 24 hours; about 2 µs."""
        return self._kind.mint(QueueToken(event_id, user_id, arrival, number, generation, epoch, now_s))

    def check(self, token: str, event_id: str, epoch: int, now_s: int) -> QueueToken:
        """Return the claims of a good token for this event; raises Refused("bad_token") saying what is wrong."""
        claims = self._kind.open(token)
        if claims.event_id != event_id:
            raise _bad("belongs to another event")
        if claims.issued_s + QUEUE_TOKEN_LIFE_S <= now_s:
            raise _bad("has expired")
        if claims.epoch > epoch:
            raise ahead_of("token")
        return claims


class SessionTokens:
    """Proofs of an admission, held by the site from redeem to complete; keys as for QueueTokens, but others."""

    def __init__(self, secrets: Mapping[str, bytes], signing: str) -> None:
        self._kind = _Kind("session token", SessionToken, b"stn session", secrets, signing)

    def mint(self, session: SessionToken) -> str:
        """Return the token of a session."""
        return self._kind.mint(session)

    def check(self, token: str, event_id: str, epoch: int) -> SessionToken:
        """Return the claims of a session of this event; raises Refused("bad_token").

        Whether it still runs is for the room to say, whose clock stands still over a pause and a restart: `limit_s` is
        what a site that trusts the session without asking goes by.
        """
        claims = self._kind.open(token)
        if claims.event_id != event_id:
            raise _bad("belongs to another event")
        if claims.epoch > epoch:
            raise ahead_of("token")
        return claims


class TransferCodes:
    """One-time codes to move a place; made with keys derived from those of the queue tokens, which live as long."""

    def __init__(self, queue_secrets: Mapping[str, bytes], signing: str) -> None:
        secrets = {key_id: _derived(secret) for key_id, secret in queue_secrets.items()}
        self._kind = _Kind("transfer code", TransferCode, b"stn transfer", secrets, signing)

    def mint(self, event_id: str, user_id: str, arrival: int, generation: int, now_s: int) -> str:
        """Return a code, good for five minutes and until the place has moved."""
        return self._kind.mint(TransferCode(event_id, user_id, arrival, generation, now_s))

    def check(self, code: str, event_id: str, now_s: int) -> TransferCode:
        """Return the claims of a code of this event; raises Refused("bad_token"). The generation is for the room."""
        claims = self._kind.open(code)
        if claims.event_id != event_id:
            raise _bad("belongs to another event")
        if claims.issued_s + TRANSFER_CODE_LIFE_S <= now_s:
            raise _bad("has expired")
        return claims


def proof_of(idempotency_key: str) -> int:
    """Return the 64-bit digest of an Idempotency-Key that is stored as proof of holding a place; never 0."""
    return int.from_bytes(blake2b(idempotency_key.encode(), digest_size=8, person=b"stanchion proof").digest()) or 1


def _head(key_id: str) -> bytes:
    return _VERSION + blake2b(key_id.encode(), digest_size=KEY_ID_BYTES).digest()


def _derived(secret: bytes) -> bytes:
    if len(secret) < SHORTEST_SECRET:
        raise ValueError(f"a key of transfer codes is shorter than {SHORTEST_SECRET} bytes")
    return blake2b(digest_size=32, key=secret[:64], person=b"stn transfer key").digest()


def _bytes_of(token: str) -> bytes:
    if len(token) > LONGEST_TOKEN:
        raise _bad("is too long")
    try:
        ascii_token = token.encode("ascii").translate(_FROM_URL)
        raw = a2b_base64(ascii_token + b"=" * (-len(ascii_token) % 4), strict_mode=True)
    except (UnicodeEncodeError, Base64Error):
        raise _bad("is not base64url") from None
    if token[-1:] not in _LAST[len(token) % 4]:
        raise _bad("is not base64url in its shortest form")
    return raw


def ahead_of(what: str) -> Refused:
    """Return the refusal of what a server signed that is ahead of this one: a later primary, whom it has yet to follow.

    It is good, so nobody may throw it away on this server's word.
    """
    return Refused("not_primary", f"the {what} comes from a later epoch than this server's", retry_after_s=1)


def _bad(problem: str) -> Refused:
    return Refused("bad_token", f"the token {problem}")
