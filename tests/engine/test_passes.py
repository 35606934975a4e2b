"""Passes: one admission however often it is minted, and nothing else admits."""

from base64 import urlsafe_b64encode
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.passes import CACHED_PASSES, PassClaims, Passes, pass_id, subject_of
from engine.signatures import keys_of_set, public_of
from tests.engine.forging import decoded, parts_of, signed, with_equal_ending

SEED, OTHER_SEED, ID_KEY = bytes(range(32)), bytes(range(32, 64)), b"i" * 32
NOW_S = 1_800_000_000
EPOCH = 2**20 + 3
PASSES = Passes(("p1", SEED), {"p0": public_of(OTHER_SEED)}, ID_KEY, "stanchion")
HEADER = {"alg": "EdDSA", "typ": "stanchion-pass+jwt", "kid": "p1"}
event_ids = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
user_ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=32)
naturals = st.integers(0, 2**53 - 1)


def minted(event_id: str = "e1", *, passes: Passes = PASSES, epoch: int = EPOCH) -> str:
    return passes.mint(event_id, "u1", 8231, 1, epoch, NOW_S, NOW_S + 120)


def with_claims(**changes: object) -> str:
    """Return a pass with a good signature and these changes to its claims (None drops)."""
    claims = {name: value for name, value in {**parts_of(minted())[1], **changes}.items() if value is not None}
    return signed(SEED, HEADER, claims)


def problem_of(token: str, *, passes: Passes = PASSES, event_id: str = "e1", epoch: int = EPOCH) -> str:
    with pytest.raises(Refused) as caught:
        passes.check(token, event_id, epoch)
    code = "not_primary" if "later epoch" in caught.value.detail else "bad_token"
    assert caught.value.code == code
    return caught.value.detail


def test_a_pass_says_these_ten_things_and_no_more() -> None:
    assert parts_of(minted()) == (
        HEADER,
        {
            "iss": "stanchion",
            "aud": "e1",
            "sub": subject_of("e1", "u1"),
            "ev": "e1",
            "num": 8231,
            "jti": pass_id(ID_KEY, "e1", 8231, 1),
            "iat": NOW_S,
            "nbf": NOW_S,
            "exp": NOW_S + 120,
            "epoch": EPOCH,
        },
    )


@given(event_ids, user_ids, naturals, st.sampled_from((1, 2)), naturals, naturals, naturals)
def test_what_is_minted_is_taken_and_told(
    event_id: str, user_id: str, number: int, release: int, epoch: int, iat_s: int, exp_s: int
) -> None:
    token = PASSES.mint(event_id, user_id, number, release, epoch, iat_s, exp_s)
    claims = PASSES.check(token, event_id, epoch)
    assert (claims.sub, claims.num, claims.epoch) == (subject_of(event_id, user_id), number, epoch)
    assert (claims.iat, claims.nbf, claims.exp) == (iat_s, iat_s, exp_s)
    assert PASSES.release_of(claims) == release


def test_time_voids_no_pass_because_the_room_decides() -> None:
    long_ago = PASSES.mint("e1", "u1", 1, 1, EPOCH, 0, 1)
    not_yet = PASSES.mint("e1", "u1", 1, 1, EPOCH, 2**52, 2**52 + 1)
    assert PASSES.check(long_ago, "e1", EPOCH).jti == PASSES.check(not_yet, "e1", EPOCH).jti


@pytest.mark.parametrize("name", PassClaims.__struct_fields__)
def test_every_claim_is_required_and_of_its_form(name: str) -> None:
    assert f"missing required field `{name}`" in problem_of(with_claims(**{name: None}))
    for wrong in (-1, 1.5, 2**53, True, [], {}, ["e1"], "", "x" * 23):
        problem_of(with_claims(**{name: wrong}))


def test_a_claim_more_is_refused() -> None:
    assert "unknown field `admin`" in problem_of(with_claims(admin=True))


def test_each_problem_has_its_word() -> None:
    assert "another event" in problem_of(minted(), event_id="e2")
    assert "another event" in problem_of(with_claims(aud="e2"))
    assert "another event" in problem_of(with_claims(ev="e2"))
    assert "another server" in problem_of(with_claims(iss="elsewhere"))
    assert "later epoch" in problem_of(minted(epoch=EPOCH + 1))
    assert "too long" in problem_of("A" * 1025)
    assert "not signed by that key" in problem_of(with_equal_ending(minted()))


def test_a_pass_of_an_earlier_epoch_is_good() -> None:
    assert PASSES.check(minted(epoch=1), "e1", EPOCH).epoch == 1


def test_the_cache_lets_nothing_by_that_was_not_good() -> None:
    passes = Passes(("p1", SEED), {}, ID_KEY, "stanchion")
    token = minted(passes=passes)
    assert passes.check(token, "e1", EPOCH) is passes.check(token, "e1", EPOCH)
    assert "another event" in problem_of(token, passes=passes, event_id="e2")
    assert "later epoch" in problem_of(token, passes=passes, epoch=EPOCH - 1)
    for bad in (token + "A", token[:-1], with_equal_ending(token), token + "\n"):
        problem_of(bad, passes=passes)
        problem_of(bad, passes=passes)


def test_the_cache_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CACHED_PASSES == 4096
    monkeypatch.setattr("engine.passes.CACHED_PASSES", 2)
    passes = Passes(("p1", SEED), {}, ID_KEY, "stanchion")
    tokens = [passes.mint("e1", "u1", number, 1, EPOCH, NOW_S, NOW_S) for number in (1, 2, 3)]
    first, second, third = (passes.check(token, "e1", EPOCH) for token in tokens)
    assert passes.check(tokens[2], "e1", EPOCH) is third
    assert passes.check(tokens[1], "e1", EPOCH) is second
    again = passes.check(tokens[0], "e1", EPOCH)
    assert again == first and again is not first


def test_rotation_with_overlap_voids_no_pass() -> None:
    old = Passes(("p0", OTHER_SEED), {}, ID_KEY, "stanchion")
    announced = Passes(("p0", OTHER_SEED), {"p1": public_of(SEED)}, ID_KEY, "stanchion")
    new = Passes(("p1", SEED), {"p0": public_of(OTHER_SEED)}, ID_KEY, "stanchion")
    for minter in (old, announced, new):
        for checker in (announced, new):
            claims = checker.check(minted(passes=minter), "e1", EPOCH)
            assert checker.release_of(claims) == 1
    assert "may not sign" in problem_of(minted(passes=new), passes=old)


def test_a_revoked_key_is_gone_at_once() -> None:
    assert "may not sign" in problem_of(minted(), passes=Passes(("p0", OTHER_SEED), {}, ID_KEY, "stanchion"))


def test_a_site_needs_the_key_set_and_nothing_else() -> None:
    assert {jwk["kid"] for jwk in PASSES.jwks()["keys"]} == {"p0", "p1"}  # type: ignore[attr-defined]
    assert "d" not in {name for jwk in PASSES.jwks()["keys"] for name in jwk}  # type: ignore[attr-defined]
    covered, _, signature = minted().rpartition(".")
    keys_of_set(PASSES.jwks())["p1"].public_key.verify(decoded(signature), covered.encode())  # type: ignore[union-attr, call-arg]


def test_a_jti_is_one_admission_and_tells_nothing_of_another() -> None:
    ids = {pass_id(key, event_id, number, release) for key in (ID_KEY, b"j" * 32) for event_id in ("e1", "e10")
           for number in (1, 2, 256) for release in (1, 2)}  # fmt: skip
    assert len(ids) == 24
    assert all(len(decoded(jti)) == 8 for jti in ids)
    assert pass_id(ID_KEY, "e1", 1, 1) == pass_id(ID_KEY, "e1", 1, 1)


def test_a_jti_of_a_third_release_or_another_key_stands_for_none() -> None:
    third = PASSES.check(PASSES.mint("e1", "u1", 1, 3, EPOCH, NOW_S, NOW_S), "e1", EPOCH)
    assert PASSES.release_of(third) is None
    foreign = Passes(("p1", SEED), {}, b"j" * 32, "stanchion")
    assert PASSES.release_of(PASSES.check(minted(passes=foreign), "e1", EPOCH)) is None


def test_a_subject_is_what_the_contract_says() -> None:
    expected = urlsafe_b64encode(sha256(b"e1\x00u1").digest()).decode()[:22]
    assert subject_of("e1", "u1") == expected
    assert len({subject_of(event_id, user_id) for event_id in ("e1", "e2") for user_id in ("u1", "u2", "ü")}) == 6


def test_a_pass_takes_400_bytes_with_an_event_id_of_7_characters_and_600_at_most() -> None:
    passes = Passes(("0cbd8c", SEED), {}, ID_KEY, "stn")
    usual = passes.mint("concert", "u1", 100_000, 1, EPOCH, NOW_S, NOW_S)
    longest = passes.mint("e" * 64, "ü" * 64, 2**32 - 1, 1, 2**53 - 1, NOW_S, NOW_S)
    assert len(usual) <= 400
    assert len(longest) <= 600
    assert len(msgspec.json.encode(parts_of(longest)[1])) <= 400


def test_the_longest_names_and_numbers_make_a_pass_that_is_taken() -> None:
    passes = Passes(("k" * 64, SEED), {}, ID_KEY, "i" * 200)
    token = passes.mint("e" * 64, "u" * 128, 2**53 - 1, 2, 2**53 - 1, 2**53 - 1, 2**53 - 1)
    assert passes.check(token, "e" * 64, 2**53 - 1).num == 2**53 - 1
    with pytest.raises(ValueError, match="issuer is longer"):
        Passes(("p1", SEED), {}, ID_KEY, "i" * 201)


def test_keys_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="pass id key"):
        Passes(("p1", SEED), {}, b"short", "stanchion")
    with pytest.raises(ValueError, match="does not belong"):
        Passes(("p1", SEED), {"p1": public_of(OTHER_SEED)}, ID_KEY, "stanchion")
    with pytest.raises(ValueError, match="32 bytes"):
        Passes(("p1", b"short"), {}, ID_KEY, "stanchion")
