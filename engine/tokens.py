"""Signed tokens. The queue token: proof of a place in line, held by the visitor.

A queue token is a JWT (RFC 7519, HS256) that only this server checks, so one secret is enough. It is minted for
every join and checked for every poll, so both are written out here (1.5 and 3 µs against about 30 for a JOSE
library) and kept strict where libraries are general: one algorithm, one header a key, compared byte for byte
before anything is parsed, so there is nothing to confuse. The tests check it against a JOSE library.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from engine.errors import Refused

QUEUE_TOKEN_LIFE_S = 24 * 3600
LONGEST_TOKEN = 1024
SHORTEST_SECRET = 32
TYPE = "stanchion-queue+jwt"
_SIGNATURE_LENGTH = 43
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]+")


class QueueToken(msgspec.Struct, frozen=True, gc=False):
    """The claims: event and visitor, arrival, number, generation (of the holder), epoch; times in Unix seconds."""

    ev: str
    sub: str
    arr: int
    num: int
    gen: int
    epoch: int
    iat: int
    exp: int

    def past_half_life(self, now_s: int) -> bool:
        """Return whether an answer should carry a fresh token."""
        return now_s - self.iat > QUEUE_TOKEN_LIFE_S // 2


_encode_claims = msgspec.json.Encoder().encode
_decode_claims = msgspec.json.Decoder(QueueToken).decode


class QueueTokens:
    """Mints with one key and checks with all of them: `secrets` maps key id → secret, `signing` names the one."""

    def __init__(self, secrets: Mapping[str, bytes], signing: str) -> None:
        for key_id, secret in secrets.items():
            if len(secret) < SHORTEST_SECRET:
                raise ValueError(f"queue key {key_id!r} is shorter than {SHORTEST_SECRET} bytes")
        self._secret = secrets[signing]
        self._head = _head(signing)
        self._secret_of_head = {_head(key_id): secret for key_id, secret in secrets.items()}

    def mint(self, event_id: str, user_id: str, arrival: int, number: int, epoch: int, now_s: int) -> str:
        """Return a token for a place, good for 24 hours; about 2 µs."""
        claims = QueueToken(event_id, user_id, arrival, number, 0, epoch, now_s, now_s + QUEUE_TOKEN_LIFE_S)
        signed = self._head + urlsafe_b64encode(_encode_claims(claims)).rstrip(b"=")
        signature = urlsafe_b64encode(hmac.digest(self._secret, signed, "sha256")).rstrip(b"=")
        return (signed + b"." + signature).decode("ascii")

    def check(self, token: str, event_id: str, epoch: int, now_s: int) -> QueueToken:
        """Return the claims of a good token for this event; raises Refused("bad_token") saying what is wrong."""
        try:
            raw = token.encode("ascii")
        except UnicodeEncodeError:
            raise _bad("is not ASCII") from None
        if len(raw) > LONGEST_TOKEN:
            raise _bad("is too long")
        signed, _, signature = raw.rpartition(b".")
        payload_at = signed.rfind(b".") + 1
        secret = self._secret_of_head.get(signed[:payload_at])
        if secret is None or len(signature) != _SIGNATURE_LENGTH:
            raise _bad("is no queue token of this server")
        expected = urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")
        if not hmac.compare_digest(expected, signature):
            raise _bad("has a bad signature")
        return _current(_claims(signed[payload_at:]), event_id, epoch, now_s)


def _head(key_id: str) -> bytes:
    header = msgspec.json.encode({"alg": "HS256", "kid": key_id, "typ": TYPE})
    return urlsafe_b64encode(header).rstrip(b"=") + b"."


def _claims(payload: bytes) -> QueueToken:
    try:
        if not _BASE64URL.fullmatch(payload):
            raise _bad("is not base64url")
        return _decode_claims(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    except (Base64Error, msgspec.DecodeError):
        raise _bad("has no claims that can be read") from None


def _current(claims: QueueToken, event_id: str, epoch: int, now_s: int) -> QueueToken:
    if claims.ev != event_id:
        raise _bad("belongs to another event")
    if claims.exp <= now_s:
        raise _bad("has expired")
    if claims.epoch > epoch:
        raise _bad("comes from a later epoch than this server's")
    return claims


def _bad(problem: str) -> Refused:
    return Refused("bad_token", f"the token {problem}")


def proof_of(idempotency_key: str) -> int:
    """Return the 64-bit digest of an Idempotency-Key that is stored as proof of holding a place; never 0."""
    return int.from_bytes(blake2b(idempotency_key.encode(), digest_size=8, person=b"stanchion proof").digest()) or 1
