"""Signed tokens: JWS (RFC 7515) with Ed25519 (RFC 8037), strict about everything that is not the signature.

A signature is hard to forge and easy to bypass: by another algorithm, a token of another kind, a header that says
what to believe, two texts that decode to the same thing, a name that stands twice. So what is taken is narrow, and
each step of it comes before anything of the next is read:

    length → three parts → header, exactly {alg: EdDSA, typ of the kind, kid} → a key known here → signature → claims

joserfc does the base64url (only the shortest form of it), the signature and the key set. It warns at every use of
the name EdDSA, because RFC 9864 would have it called Ed25519; EdDSA is what verifiers in the field understand, and
only Ed25519 keys come near it here, so the registry below knows this one algorithm and does not warn.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeyParameters, OKPKey
from joserfc.util import urlsafe_b64decode

from engine.errors import Refused

ALGORITHM = "EdDSA"
KEY_BYTES = 32
LONGEST_KEY_ID = 64
Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]

_FIELD_PRIME = 2**255 - 19
# Whoever registers a point of order 1, 2, 4 or 8 registers a key under which a signature of nothing verifies.
_WEAK_Y = {
    0,
    1,
    _FIELD_PRIME - 1,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
}
T = TypeVar("T")


class Kind(NamedTuple):
    """What sets one kind of token apart: its name in words, `typ` in the header, error code, and longest length."""

    name: str
    typ: str
    code: str
    longest: int

    def refused(self, problem: str) -> Refused:
        """Return the refusal that says what is wrong with a token of this kind."""
        return Refused(self.code, f"the {self.name} {problem}")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["EdDSA"]
    typ: str
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_KEY_ID)]


class _OneAlgorithm(jws.JWSRegistry):
    max_header_length = 256

    def get_alg(self, name: str) -> Any:
        """Return EdDSA whatever the name: headers with another one never get here."""
        return self.algorithms[ALGORITHM]


_REGISTRY = _OneAlgorithm()
_HEADER = msgspec.json.Decoder(_Header)


# ---- keys ---------------------------------------------------------------------------------------------


def signing_key(key_id: str, seed: bytes) -> OKPKey:
    """Return the key that signs, of a private seed of 32 bytes; raises ValueError."""
    if len(seed) != KEY_BYTES:
        raise ValueError(f"the seed of key {key_id!r} must be {KEY_BYTES} bytes")
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return OKPKey(private, private, _parameters(key_id))


def verifying_key(key_id: str, public: bytes) -> OKPKey:
    """Return the key that verifies, of a public key of 32 bytes; raises ValueError for what anyone could sign under."""
    if len(public) != KEY_BYTES:
        raise ValueError(f"the public key {key_id!r} must be {KEY_BYTES} bytes")
    if (int.from_bytes(public, "little") & (2**255 - 1)) % _FIELD_PRIME in _WEAK_Y:
        raise ValueError(f"the public key {key_id!r} is weak: anyone could sign under it")
    raw = Ed25519PublicKey.from_public_bytes(public)
    return OKPKey(raw, raw, _parameters(key_id))


def verifying_keys(public: Mapping[str, bytes]) -> dict[str, OKPKey]:
    """Return the keys that verify, by key id; raises ValueError."""
    return {key_id: verifying_key(key_id, raw) for key_id, raw in public.items()}


def public_of(seed: bytes) -> bytes:
    """Return the 32 public bytes that belong to a private seed."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_set_of(keys: Mapping[str, OKPKey]) -> dict[str, object]:
    """Return a JWKS (RFC 7517) of the public halves."""
    return {"keys": [key.as_dict(private=False) for key in keys.values()]}


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    kid: str = ""
    crv: str = ""
    x: str = ""
    use: str = "sig"
    alg: str = ALGORITHM


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[_Jwk]


def keys_of_set(key_set: Mapping[str, object]) -> dict[str, OKPKey]:
    """Return the Ed25519 keys of a JWKS by key id, passing over keys of other kinds; raises ValueError."""
    try:
        keys = msgspec.convert(key_set, _Jwks).keys
    except msgspec.ValidationError as error:
        raise ValueError(f"this is no JWKS: {error}") from None
    fitting = (key for key in keys if (key.kty, key.crv, key.use, key.alg) == ("OKP", "Ed25519", "sig", ALGORITHM))
    return {key.kid: verifying_key(key.kid, _raw_of(key)) for key in fitting}


def _raw_of(key: _Jwk) -> bytes:
    try:
        return urlsafe_b64decode(key.x.encode())
    except ValueError:
        raise ValueError(f"the public key {key.kid!r} is not base64url") from None


def _parameters(key_id: str) -> KeyParameters:
    if not 0 < len(key_id) <= LONGEST_KEY_ID or not key_id.isascii() or not key_id.isprintable():
        raise ValueError(f"a key id is 1 to {LONGEST_KEY_ID} printable ASCII characters, not {key_id!r}")
    return {"kid": key_id, "use": "sig", "alg": ALGORITHM}


# ---- tokens -------------------------------------------------------------------------------------------


def sign(kind: Kind, key: OKPKey, claims: bytes) -> str:
    """Return the token of these claims (JSON); about 60 µs."""
    header = {"alg": ALGORITHM, "typ": kind.typ, "kid": key.kid}
    return jws.serialize_compact(header, claims, key, registry=_REGISTRY)


def verified(kind: Kind, token: str, keys: Mapping[str, OKPKey], decoder: "msgspec.json.Decoder[T]") -> T:
    """Return the claims of a token that one of the keys signed; raises the kind's refusal. About 170 µs."""
    if len(token) > kind.longest:
        raise kind.refused("is too long")
    if token.count(".") != 2 or not token.isascii():
        raise kind.refused("is no compact JWS: three parts of base64url with dots between")
    header = _header_of(kind, token.partition(".")[0])
    key = keys.get(header.kid)
    if key is None:
        raise kind.refused(f"names a key that may not sign it: {header.kid!r}")
    try:
        raw = jws.deserialize_compact(token, key, registry=_REGISTRY).payload
    except JoseError:
        raise kind.refused("is not signed by that key, or not base64url") from None
    return _strictly(kind, "claims", raw, decoder)


def _header_of(kind: Kind, segment: str) -> _Header:
    if len(segment) > _REGISTRY.max_header_length:
        raise kind.refused("has a header that is too long")
    try:
        raw = urlsafe_b64decode(segment.encode())
    except ValueError:
        raise kind.refused("has a header that is not base64url") from None
    header = _strictly(kind, "header", raw, _HEADER)
    if header.typ != kind.typ:
        raise kind.refused(f"has a header that is wrong: typ must be {kind.typ}")
    return header


def _strictly(kind: Kind, part: str, raw: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Return what a decoder makes of JSON in which no name stands twice; msgspec itself would take the last."""
    try:
        decoded = decoder.decode(raw)
        pairs = json.loads(raw, object_pairs_hook=list)
    except msgspec.ValidationError as error:
        raise kind.refused(f"has a {part} that is wrong: {error}") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise kind.refused(f"has a {part} that is no JSON") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise kind.refused(f"has a {part} that names something twice")
    return decoded
