"""Queue tokens: what is minted is taken, and nothing else is."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.tokens import LONGEST_TOKEN, QUEUE_TOKEN_LIFE_S, QueueTokens, proof_of

SECRET, OTHER = b"s" * 32, b"o" * 32
NOW_S = 1_800_000_000
TOKENS = QueueTokens({"a": SECRET}, "a")


def minted(user_id: str = "u1", tokens: QueueTokens = TOKENS, epoch: int = 5) -> str:
    return tokens.mint("e1", user_id, 7, 8, 9, epoch, NOW_S)


def problem_of(
    token: str, *, tokens: QueueTokens = TOKENS, event_id: str = "e1", epoch: int = 5, now_s: int = NOW_S
) -> str:
    with pytest.raises(Refused) as caught:
        tokens.check(token, event_id, epoch, now_s)
    assert (caught.value.code, caught.value.status) == ("bad_token", 401)
    return caught.value.detail


@given(st.text(min_size=1, max_size=128).filter(lambda text: text.encode("utf-8", "ignore").decode() == text))
def test_a_minted_token_tells_the_place_it_was_minted_for(user_id: str) -> None:
    claims = TOKENS.check(minted(user_id), "e1", 5, NOW_S)
    assert msgspec.structs.astuple(claims)[:6] == ("e1", user_id, 7, 8, 9, 5)


def test_a_token_is_safe_in_an_address_and_short() -> None:
    token = minted("0123456789abcdef0123456789abcdef")
    assert len(token) < 200
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    raw = bytearray(urlsafe_b64decode(minted() + "=="))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    problem_of(urlsafe_b64encode(raw).rstrip(b"=").decode())


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_what_was_never_minted_is_refused_and_nothing_else_happens(token: str) -> None:
    problem_of(token)


def test_a_cut_token_is_refused_at_every_length() -> None:
    token = minted()
    for length in range(len(token)):
        problem_of(token[:length])


def test_each_problem_has_its_word() -> None:
    assert "signature" in problem_of(minted(tokens=QueueTokens({"a": OTHER}, "a")))
    assert "no queue token of this server" in problem_of(minted(tokens=QueueTokens({"b": SECRET}, "b")))
    assert "another event" in problem_of(minted(), event_id="e2")
    assert "expired" in problem_of(minted(), now_s=NOW_S + QUEUE_TOKEN_LIFE_S)
    assert "later epoch" in problem_of(minted(epoch=6))
    assert "too long" in problem_of("A" * (LONGEST_TOKEN + 1))
    assert "base64url" in problem_of("+/+/")
    assert "base64url" in problem_of(minted() + "=")


def test_a_token_of_an_earlier_epoch_is_good() -> None:
    assert TOKENS.check(minted(epoch=4), "e1", 5, NOW_S).epoch == 4


def test_rotation_with_overlap_loses_no_place() -> None:
    both = QueueTokens({"a": SECRET, "b": OTHER}, "b")
    assert both.check(minted(), "e1", 5, NOW_S).arrival == 7
    assert "no queue token" in problem_of(minted(tokens=both))


def test_a_token_is_renewed_after_half_its_life() -> None:
    claims = TOKENS.check(minted(), "e1", 5, NOW_S)
    assert not claims.past_half_life(NOW_S + QUEUE_TOKEN_LIFE_S // 2)
    assert claims.past_half_life(NOW_S + QUEUE_TOKEN_LIFE_S // 2 + 1)


def test_short_secrets_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter than 32"):
        QueueTokens({"a": b"short"}, "a")


def test_a_proof_is_never_the_word_for_no_proof() -> None:
    assert proof_of("k1") == proof_of("k1") != proof_of("k2")
    assert 0 < proof_of("k1") < 2**64
