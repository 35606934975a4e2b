"""Receipts: what a join was answered, in a form that needs no server to be believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.passes import Passes, subject_of
from engine.receipts import Join, ReceiptClaims, Receipts, check_receipt
from engine.signatures import public_of
from tests.engine.forging import parts_of, signed, with_equal_ending

SEED, OTHER_SEED = bytes(range(32)), bytes(range(32, 64))
NOW_S = 1_800_000_000
EPOCH = 2**20 + 3
RECEIPTS = Receipts(("p1", SEED), "stanchion")
KEY_SET = Passes(("p1", SEED), {"p0": public_of(OTHER_SEED)}, b"i" * 32, "stanchion").jwks()
JOIN = Join("e1", "u1", 8231, 8200, NOW_S * 1000, 12_345)
HEADER = {"alg": "EdDSA", "typ": "stanchion-receipt+jwt", "kid": "p1"}
naturals = st.integers(0, 2**53 - 1)


def problem_of(receipt: str, key_set: dict[str, object] = KEY_SET) -> Refused:
    with pytest.raises(Refused) as caught:
        check_receipt(receipt, key_set)
    return caught.value


def test_a_receipt_says_who_joined_what_when_and_where_in_the_log() -> None:
    header, claims = parts_of(RECEIPTS.mint(JOIN, EPOCH, NOW_S))
    assert header == HEADER
    assert claims == {
        "iss": "stanchion",
        "ev": "e1",
        "sub": subject_of("e1", "u1"),
        "arrival": 8231,
        "number": 8200,
        "joined_ms": NOW_S * 1000,
        "lsn": 12_345,
        "epoch": EPOCH,
        "iat": NOW_S,
    }


def test_in_the_lobby_a_receipt_has_no_number() -> None:
    receipt = RECEIPTS.mint(JOIN._replace(number=None), EPOCH, NOW_S)
    assert "number" not in parts_of(receipt)[1]
    assert check_receipt(receipt, KEY_SET).number is None


@given(st.text(st.characters(codec="utf-8"), max_size=64), naturals, st.none() | naturals, naturals, naturals, naturals)
def test_what_is_signed_is_told_by_the_key_set_alone(
    user_id: str, arrival: int, number: int | None, joined_ms: int, lsn: int, epoch: int
) -> None:
    join = Join("e1", user_id, arrival, number, joined_ms, lsn)
    assert check_receipt(RECEIPTS.mint(join, epoch, NOW_S), KEY_SET) == ReceiptClaims(
        "stanchion", "e1", subject_of("e1", user_id), arrival, joined_ms, lsn, epoch, NOW_S, number
    )


def test_a_receipt_outlives_the_rotation_of_its_key() -> None:
    assert check_receipt(Receipts(("p0", OTHER_SEED), "stanchion").mint(JOIN, EPOCH, NOW_S), KEY_SET).lsn == 12_345


def test_a_receipt_that_was_changed_or_made_by_others_is_refused() -> None:
    good = RECEIPTS.mint(JOIN, EPOCH, NOW_S)
    better = {**parts_of(good)[1], "number": 1}
    for receipt in (
        with_equal_ending(good),
        good + "A",
        good + "\n",
        signed(OTHER_SEED, HEADER, better),
        signed(SEED, {**HEADER, "alg": "none"}, better),
        f"{signed(SEED, HEADER, better).rpartition('.')[0]}.{good.rpartition('.')[2]}",
    ):
        assert problem_of(receipt).code == "bad_token"


@pytest.mark.parametrize("name", [name for name in ReceiptClaims.__struct_fields__ if name != "number"])
def test_every_claim_but_the_number_is_required(name: str) -> None:
    claims = parts_of(RECEIPTS.mint(JOIN, EPOCH, NOW_S))[1]
    del claims[name]
    assert f"missing required field `{name}`" in problem_of(signed(SEED, HEADER, claims)).detail


def test_a_claim_more_is_refused() -> None:
    claims = parts_of(RECEIPTS.mint(JOIN, EPOCH, NOW_S))[1]
    assert "unknown field `exp`" in problem_of(signed(SEED, HEADER, {**claims, "exp": 1})).detail


def test_what_is_no_key_set_is_said_to_be_none() -> None:
    assert problem_of(RECEIPTS.mint(JOIN, EPOCH, NOW_S), {"keys": "none"}).code == "bad_request"


def test_a_key_set_without_the_key_believes_nothing() -> None:
    assert "may not sign" in problem_of(RECEIPTS.mint(JOIN, EPOCH, NOW_S), {"keys": []}).detail
