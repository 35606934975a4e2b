"""A shop's public key in every form in which shops have it, and private ones never."""

import json
from base64 import urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from engine.errors import Refused
from server.public_keys import read_public_key

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key()
RAW = PUBLIC.public_bytes_raw()
TEXT = urlsafe_b64encode(RAW).rstrip(b"=").decode()
JWK = {"kty": "OKP", "crv": "Ed25519", "x": TEXT, "kid": "shop-1"}
PEM = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
SECRET_TEXT = urlsafe_b64encode(PRIVATE.private_bytes_raw()).decode()


@pytest.mark.parametrize("shown", [TEXT, TEXT + "=", f" {TEXT}\n", JWK, json.dumps(JWK), PEM])
def test_every_form_gives_the_same_bytes(shown: str | dict[str, object]) -> None:
    assert read_public_key(shown) == RAW


@pytest.mark.parametrize(
    "shown",
    [
        PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        {**JWK, "d": SECRET_TEXT},
        json.dumps({**JWK, "d": SECRET_TEXT}),
    ],
)
def test_a_private_key_is_refused_with_advice_and_not_repeated(shown: str | dict[str, object]) -> None:
    with pytest.raises(Refused, match="private key; send the public half") as caught:
        read_public_key(shown)
    assert SECRET_TEXT.rstrip("=") not in str(caught.value)


EC_PEM = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "x",
        "ü" * 43,
        TEXT[:-4],
        TEXT * 2,
        "A" * 43,
        "AQ" + "A" * 41,
        "{",
        "[]",
        "{}",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        EC_PEM.decode(),
        {},
        {**JWK, "crv": "X25519"},
        {**JWK, "kty": "EC"},
        {**JWK, "x": 7},
        {**JWK, "x": "!"},
    ],
)
def test_anything_else_is_a_bad_request_that_names_the_field(shown: str | dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        read_public_key(shown)
    assert (caught.value.status, caught.value.field) == (400, "public_key")
