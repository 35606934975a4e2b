"""Signed tokens: the envelope that passes, receipts and enqueue tokens share, and every way around its signature."""

import hmac
import json
from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.signatures import (
    Kind,
    key_set_of,
    keys_of_set,
    public_of,
    sign,
    signing_key,
    verified,
    verifying_key,
    verifying_keys,
)
from tests.engine.forging import ALPHABET, decoded, encoded, parts_of, signed, with_equal_ending


class Claims(msgspec.Struct, frozen=True):
    name: str
    number: int = 0


SEED, OTHER_SEED = bytes(range(32)), bytes(range(32, 64))
KIND = Kind("sample", "stanchion-sample+jwt", "bad_token", 1024)
KEYS = verifying_keys({"k1": public_of(SEED), "k2": public_of(OTHER_SEED)})
HEADER: dict[str, object] = {"alg": "EdDSA", "typ": KIND.typ, "kid": "k1"}
CLAIMS: dict[str, object] = {"name": "n", "number": 7}
DECODER = msgspec.json.Decoder(Claims)
GOOD = sign(KIND, signing_key("k1", SEED), msgspec.json.encode(CLAIMS))


def problem_of(token: str) -> str:
    with pytest.raises(Refused) as caught:
        verified(KIND, token, KEYS, DECODER)
    assert (caught.value.code, caught.value.status) == ("bad_token", 401)
    return caught.value.detail


def headed(**changes: object) -> str:
    """Return a token with a good signature of the right key and these changes to its header (None drops)."""
    header = {name: value for name, value in {**HEADER, **changes}.items() if value is not None}
    return signed(SEED, header, CLAIMS)


def hs256(secret: bytes) -> str:
    covered = f"{encoded(json.dumps({**HEADER, 'alg': 'HS256'}).encode())}.{encoded(json.dumps(CLAIMS).encode())}"
    return f"{covered}.{encoded(hmac.digest(secret, covered.encode(), sha256))}"


def without_signature(alg: str) -> str:
    return headed(alg=alg).rpartition(".")[0] + "."


JWK = key_set_of(KEYS)["keys"][1]  # type: ignore[index]
ATTACKS: dict[str, tuple[Callable[[], str], str]] = {
    "alg none": (lambda: without_signature("none"), "header"),
    "alg None": (lambda: without_signature("None"), "header"),
    "alg none with a good signature": (lambda: headed(alg="none"), "header"),
    "HS256 with the public key as secret": (lambda: hs256(public_of(SEED)), "header"),
    "HS256 with the JWK as secret": (lambda: hs256(json.dumps(JWK).encode()), "header"),
    "RS256": (lambda: headed(alg="RS256"), "header"),
    "ES256": (lambda: headed(alg="ES256"), "header"),
    "another name of the algorithm": (lambda: headed(alg="Ed25519"), "header"),
    "alg in small letters": (lambda: headed(alg="eddsa"), "header"),
    "alg as a list": (lambda: headed(alg=["EdDSA"]), "header"),
    "no alg": (lambda: headed(alg=None), "header"),
    "another typ": (lambda: headed(typ="stanchion-pass+jwt"), "typ must be"),
    "typ JWT": (lambda: headed(typ="JWT"), "typ must be"),
    "typ in capitals": (lambda: headed(typ=KIND.typ.upper()), "typ must be"),
    "no typ": (lambda: headed(typ=None), "header"),
    "no kid": (lambda: headed(kid=None), "header"),
    "an empty kid": (lambda: headed(kid=""), "header"),
    "a kid that is a number": (lambda: headed(kid=1), "header"),
    "a kid that is a path": (lambda: headed(kid="../../etc/passwd"), "may not sign"),
    "a kid nobody knows": (lambda: headed(kid="k3"), "may not sign"),
    "the kid of another key": (lambda: headed(kid="k2"), "not signed"),
    "crit b64": (lambda: headed(crit=["b64"], b64=False), "header"),
    "crit of what is not there": (lambda: headed(crit=["exp"]), "header"),
    "an empty crit": (lambda: headed(crit=[]), "header"),
    "b64 without crit": (lambda: headed(b64=False), "header"),
    "the key to believe": (lambda: signed(OTHER_SEED, {**HEADER, "jwk": JWK}, CLAIMS), "header"),
    "where to fetch the key": (lambda: headed(jku="http://127.0.0.1/keys"), "header"),
    "a certificate": (lambda: headed(x5c=["AA=="]), "header"),
    "compressed": (lambda: headed(zip="DEF"), "header"),
    "a huge header": (lambda: headed(kid="k" * 400), "header that is too long"),
    "a huge token": (lambda: GOOD + "A" * 1024, "too long"),
    "alg named twice": (
        lambda: signed(SEED, b'{"alg":"EdDSA","alg":"EdDSA","typ":"%s","kid":"k1"}' % KIND.typ.encode(), CLAIMS),
        "header that names something twice",
    ),
    "kid named twice": (
        lambda: signed(SEED, b'{"alg":"EdDSA","kid":"k2","typ":"%s","kid":"k1"}' % KIND.typ.encode(), CLAIMS),
        "header that names something twice",
    ),
    "crit named twice": (
        lambda: signed(SEED, b'{"alg":"EdDSA","typ":"%s","kid":"k1","crit":[],"crit":[]}' % KIND.typ.encode(), CLAIMS),
        "header",
    ),
    "a header that is a list": (lambda: signed(SEED, b"[]", CLAIMS), "header"),
    "a header that is null": (lambda: signed(SEED, b"null", CLAIMS), "header"),
    "a header that is empty": (lambda: signed(SEED, b"", CLAIMS), "header"),
    "a header that is deep": (lambda: signed(SEED, b"[" * 180, CLAIMS), "header"),
    "a header with more behind it": (lambda: signed(SEED, json.dumps(HEADER).encode() + b"{}", CLAIMS), "header"),
    "a header in UTF-16": (lambda: signed(SEED, json.dumps(HEADER).encode("utf-16"), CLAIMS), "header"),
    "claims named twice": (lambda: signed(SEED, HEADER, b'{"name":"a","name":"n"}'), "claims that names something"),
    "claims of another form": (lambda: signed(SEED, HEADER, {"name": 1}), "claims that is wrong"),
    "claims with a fraction": (lambda: signed(SEED, HEADER, b'{"name":"n","number":1.0}'), "claims that is wrong"),
    "claims with a truth for a number": (lambda: signed(SEED, HEADER, {**CLAIMS, "number": True}), "claims"),
    "claims that are a list": (lambda: signed(SEED, HEADER, b'["n", 7]'), "claims that is wrong"),
    "claims that are deep": (lambda: signed(SEED, HEADER, b'{"x":' + b"[" * 600), "claims that is no JSON"),
    "claims with NaN": (lambda: signed(SEED, HEADER, b'{"name":"n","x":NaN}'), "claims that is no JSON"),
    "claims that are no text": (lambda: signed(SEED, HEADER, b'{"name":"\xff"}'), "claims that is"),
    "no claims": (lambda: signed(SEED, HEADER, b""), "claims that is no JSON"),
    "another key": (lambda: signed(OTHER_SEED, HEADER, CLAIMS), "not signed"),
    "no signature": (lambda: GOOD.rpartition(".")[0] + ".", "not signed"),
    "a short signature": (lambda: GOOD[:-4], "not signed"),
    "a long signature": (lambda: GOOD + "AAAA", "not signed"),
    "a signature of zeros": (lambda: f"{GOOD.rpartition('.')[0]}.{encoded(bytes(64))}", "not signed"),
    "the signature of other claims": (
        lambda: f"{GOOD.rpartition('.')[0]}.{signed(SEED, HEADER, {}).rpartition('.')[2]}",
        "not signed",
    ),
    "base64 that means the same": (lambda: with_equal_ending(GOOD), "not signed"),
    "padding": (lambda: GOOD + "==", "not signed"),
    "a line feed at the end": (lambda: GOOD + "\n", "not signed"),
    "a space in front": (lambda: " " + GOOD, "base64url"),
    "a NUL at the end": (lambda: GOOD + "\x00", "not signed"),
    "another alphabet": (lambda: GOOD.replace("-", "+").replace("_", "/") + "+", "not signed"),
    "letters beyond ASCII": (lambda: GOOD + "é", "compact JWS"),
    "half a character": (lambda: GOOD + "\ud800", "compact JWS"),
    "two parts": (lambda: GOOD.rpartition(".")[0], "compact JWS"),
    "four parts": (lambda: GOOD + ".AAAA", "compact JWS"),
    "five parts": (lambda: "a.b.c.d.e", "compact JWS"),
    "three empty parts": (lambda: "..", "header"),
    "nothing": (lambda: "", "compact JWS"),
    "detached claims": (lambda: f"{GOOD.split('.')[0]}..{GOOD.split('.')[2]}", "not signed"),
    "the JSON form": (
        lambda: json.dumps(dict(zip(("protected", "payload", "signature"), GOOD.split("."), strict=True))),
        "compact JWS",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_way_around_the_signature_is_open(name: str) -> None:
    forge, problem = ATTACKS[name]
    assert problem in problem_of(forge())


def test_what_was_signed_is_told() -> None:
    assert verified(KIND, GOOD, KEYS, DECODER) == Claims("n", 7)


def test_a_token_put_together_by_hand_is_as_good() -> None:
    assert verified(KIND, signed(SEED, HEADER, CLAIMS), KEYS, DECODER) == Claims("n", 7)
    assert verified(KIND, headed(kid="k1", typ=KIND.typ), KEYS, DECODER) == Claims("n", 7)


def test_the_header_is_these_three_and_nothing_else() -> None:
    assert parts_of(GOOD) == (HEADER, CLAIMS)


def test_the_signature_is_one_that_others_verify() -> None:
    covered, _, signature = GOOD.rpartition(".")
    Ed25519PublicKey.from_public_bytes(public_of(SEED)).verify(decoded(signature), covered.encode())


@given(st.text(max_size=64), st.integers(-(2**63), 2**63 - 1))
def test_any_claims_come_back(name: str, number: int) -> None:
    claims = Claims(name, number)
    token = sign(KIND, signing_key("k1", SEED), msgspec.json.encode(claims))
    assert verified(KIND, token, KEYS, DECODER) == claims


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(ALPHABET + ".=+/ "))
def test_any_changed_character_is_found(at: int, character: str) -> None:
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    if changed != GOOD:
        problem_of(changed)


def test_any_flipped_bit_is_found() -> None:
    for part in range(3):
        raw = decoded(GOOD.split(".")[part])
        for at in range(len(raw) * 8):
            flipped = bytearray(raw)
            flipped[at // 8] ^= 1 << at % 8
            parts = GOOD.split(".")
            parts[part] = encoded(bytes(flipped))
            problem_of(".".join(parts))


@given(st.text(max_size=80) | st.lists(st.binary(max_size=40).map(encoded), max_size=4).map(".".join))
def test_what_was_never_signed_is_refused_and_nothing_else_happens(token: str) -> None:
    problem_of(token)


# ---- keys ---------------------------------------------------------------------------------------------


def test_a_key_set_holds_the_public_halves_and_gives_them_back() -> None:
    key_set = key_set_of({"k1": signing_key("k1", SEED)})
    assert key_set == {
        "keys": [
            {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": encoded(public_of(SEED))}
        ]
    }
    assert verified(KIND, GOOD, keys_of_set(key_set), DECODER) == Claims("n", 7)


def test_keys_of_other_kinds_in_a_set_are_passed_over() -> None:
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": encoded(public_of(SEED))}
    others = [
        {"kty": "RSA", "kid": "k1", "n": "AA", "e": "AQAB"},
        {"kty": "oct", "kid": "k1", "k": "AAAA"},
        {**jwk, "crv": "X25519"},
        {**jwk, "use": "enc"},
        {**jwk, "alg": "HS256"},
    ]
    assert keys_of_set({"keys": others}) == {}
    assert list(keys_of_set({"keys": [*others, jwk]})) == ["k1"]


@pytest.mark.parametrize(
    "key_set",
    [{}, {"keys": 1}, {"keys": [1]}, {"keys": [{"kid": "k1"}]}]
    + [
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x}]}
        for x in ("", "AAAA", "!", "é", encoded(SEED) + "=")
    ]
    + [{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "", "x": encoded(public_of(SEED))}]}],
)
def test_what_is_no_key_set_is_refused(key_set: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"JWKS|public key|key id"):
        keys_of_set(key_set)


WEAK = [
    encoding
    for y in (0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18)
    for encoding in (y.to_bytes(32, "little"), (y | 1 << 255).to_bytes(32, "little"))
] + [
    bytes.fromhex(point)
    for point in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
]


@pytest.mark.parametrize("public", WEAK, ids=[public.hex() for public in WEAK])
def test_a_key_under_which_anyone_can_sign_is_refused(public: bytes) -> None:
    with pytest.raises(ValueError, match="anyone could sign"):
        verifying_key("k1", public)


@pytest.mark.parametrize("raw", [b"", SEED[:31], SEED + b"x"])
def test_keys_of_another_length_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        signing_key("k1", raw)
    with pytest.raises(ValueError, match="32 bytes"):
        verifying_key("k1", raw)


@pytest.mark.parametrize("key_id", ["", "k" * 65, "k\n", "ké"])
def test_key_ids_that_would_not_fit_a_header_are_refused(key_id: str) -> None:
    with pytest.raises(ValueError, match="key id"):
        signing_key(key_id, SEED)
    with pytest.raises(ValueError, match="key id"):
        verifying_key(key_id, public_of(SEED))
