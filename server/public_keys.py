"""A shop's public key, in the forms in which shops have it: base64url, JWK (RFC 8037), PEM.

Private halves never belong here, so where one is recognised it is refused with the advice to replace it.
"""

from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from engine.errors import Refused
from engine.signatures import verifying_key

KEY_BYTES = 32
_FORMS = "must be an Ed25519 public key: 32 bytes in base64url, a JWK, or PEM"


def read_public_key(shown: str | Mapping[str, object]) -> bytes:
    """Return the 32 bytes of an Ed25519 public key; raises Refused with bad_request."""
    raw = _of_text(shown.strip()) if isinstance(shown, str) else _of_jwk(shown)
    try:
        verifying_key("enqueue", raw)
    except ValueError:
        raise _bad("is a weak key: anyone could sign under it") from None
    return raw


def _of_text(text: str) -> bytes:
    if "PRIVATE KEY" in text:
        raise _private()
    if text.startswith("-----"):
        return _of_pem(text)
    if text.startswith("{"):
        return _of_json(text)
    return _of_base64url(text)


def _of_pem(text: str) -> bytes:
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _bad(_FORMS) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _bad(f"{_FORMS}; this one is of another kind")
    return key.public_bytes_raw()


def _of_json(text: str) -> bytes:
    try:
        return _of_jwk(msgspec.json.decode(text, type=dict[str, object]))
    except msgspec.DecodeError:
        raise _bad(_FORMS) from None


def _of_jwk(jwk: Mapping[str, object]) -> bytes:
    if "d" in jwk:
        raise _private()
    point = jwk.get("x")
    if jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519" or not isinstance(point, str):
        raise _bad(f"{_FORMS}; a JWK needs kty OKP, crv Ed25519 and x")
    return _of_base64url(point)


def _of_base64url(text: str) -> bytes:
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (UnicodeEncodeError, Base64Error):
        raw = b""
    if len(raw) != KEY_BYTES:
        raise _bad(_FORMS)
    return raw


def _private() -> Refused:
    return _bad("is a private key; send the public half, and make a new pair, as this one has left its place")


def _bad(problem: str) -> Refused:
    return Refused("bad_request", f"public_key {problem}", field="public_key")
