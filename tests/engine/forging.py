"""Signed tokens put together by hand, so that a test can make what no library would."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def encoded(raw: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """Return the bytes of base64url without padding."""
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed(seed: bytes, header: Mapping[str, object] | bytes, claims: Mapping[str, object] | bytes) -> str:
    """Return a compact JWS with a good Ed25519 signature over whatever header and claims."""
    head, body = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
    covered = f"{encoded(head)}.{encoded(body)}"
    return f"{covered}.{encoded(Ed25519PrivateKey.from_private_bytes(seed).sign(covered.encode()))}"


def parts_of(token: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return header and claims of a compact JWS, believing nothing."""
    header, claims, _ = token.split(".")
    return json.loads(decoded(header)), json.loads(decoded(claims))


def with_equal_ending(token: str) -> str:
    """Return another text that a careless decoder takes for the same bytes: the last character's spare bits set."""
    return token[:-1] + ALPHABET[ALPHABET.index(token[-1]) ^ 1]
