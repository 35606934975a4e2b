"""Signed tokens. The queue token: proof of a place in line, held by the visitor.

Only this server checks a queue token, so one secret is enough, and one is minted for every join and checked
for every poll, so it is made of the two cheapest sound parts: a keyed BLAKE2b (RFC 7693, the MAC is part of the
hash) over compact claims. HS256 through OpenSSL costs three times as much on the join path. Form:

    base64url( version (1 byte) ‖ key id (4 bytes) ‖ tag (20 bytes) ‖ claims (a JSON array) )

The tag covers version, key id and claims under a personalisation of its own, so no other kind of token can
stand in for this one, and it is compared before anything behind it is read.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from hashlib import blake2b
from hmac import compare_digest

import msgspec

from engine.errors import Refused

QUEUE_TOKEN_LIFE_S = 24 * 3600
LONGEST_TOKEN = 1024
SHORTEST_SECRET = 32
KEY_ID_BYTES = 4
TAG_BYTES = 20
_VERSION = b"\x01"
_HEAD_BYTES = len(_VERSION) + KEY_ID_BYTES
_PERSON = b"stanchion queue"
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/   ")


class QueueToken(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The claims of a place: who, where in line, of which holder (`generation`), when (Unix seconds)."""

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


_encode_claims = msgspec.json.Encoder().encode
_decode_claims = msgspec.json.Decoder(QueueToken).decode


class QueueTokens:
    """Mints with one key and checks with all of them: `secrets` maps key id → secret, `signing` names the one."""

    def __init__(self, secrets: Mapping[str, bytes], signing: str) -> None:
        for key_id, secret in secrets.items():
            if len(secret) < SHORTEST_SECRET:
                raise ValueError(f"queue key {key_id!r} is shorter than {SHORTEST_SECRET} bytes")
        self._secret = secrets[signing][:64]
        self._head = _head(signing)
        self._secret_of_head = {_head(key_id): secret[:64] for key_id, secret in secrets.items()}
        if len(self._secret_of_head) < len(secrets):
            raise ValueError("two queue keys have ids that cannot be told apart")

    def mint(self, event_id: str, user_id: str, arrival: int, number: int, epoch: int, now_s: int) -> str:
        """Return a token for a place, good for 24 hours; about 2 µs."""
        claims = _encode_claims(QueueToken(event_id, user_id, arrival, number, 0, epoch, now_s))
        head = self._head
        tag = blake2b(head + claims, digest_size=TAG_BYTES, key=self._secret, person=_PERSON).digest()
        return b2a_base64(head + tag + claims, newline=False).rstrip(b"=").translate(_TO_URL).decode("ascii")

    def check(self, token: str, event_id: str, epoch: int, now_s: int) -> QueueToken:
        """Return the claims of a good token for this event; raises Refused("bad_token") saying what is wrong."""
        raw = _bytes_of(token)
        head, tag, claims = (
            raw[:_HEAD_BYTES],
            raw[_HEAD_BYTES : _HEAD_BYTES + TAG_BYTES],
            raw[_HEAD_BYTES + TAG_BYTES :],
        )
        secret = self._secret_of_head.get(head)
        if secret is None:
            raise _bad("is no queue token of this server")
        if not compare_digest(tag, blake2b(head + claims, digest_size=TAG_BYTES, key=secret, person=_PERSON).digest()):
            raise _bad("has a bad signature")
        return _current(_decode_claims(claims), event_id, epoch, now_s)


def _head(key_id: str) -> bytes:
    return _VERSION + blake2b(key_id.encode(), digest_size=KEY_ID_BYTES).digest()


def _bytes_of(token: str) -> bytes:
    if len(token) > LONGEST_TOKEN:
        raise _bad("is too long")
    try:
        ascii_token = token.encode("ascii").translate(_FROM_URL)
        return a2b_base64(ascii_token + b"=" * (-len(ascii_token) % 4), strict_mode=True)
    except (UnicodeEncodeError, Base64Error):
        raise _bad("is not base64url") from None


def _current(claims: QueueToken, event_id: str, epoch: int, now_s: int) -> QueueToken:
    if claims.event_id != event_id:
        raise _bad("belongs to another event")
    if claims.issued_s + QUEUE_TOKEN_LIFE_S <= now_s:
        raise _bad("has expired")
    if claims.epoch > epoch:
        raise _bad("comes from a later epoch than this server's")
    return claims


def _bad(problem: str) -> Refused:
    return Refused("bad_token", f"the token {problem}")


def proof_of(idempotency_key: str) -> int:
    """Return the 64-bit digest of an Idempotency-Key that is stored as proof of holding a place; never 0."""
    return int.from_bytes(blake2b(idempotency_key.encode(), digest_size=8, person=b"stanchion proof").digest()) or 1
