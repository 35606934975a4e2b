"""Keyed tokens: what is minted is taken, and nothing else is."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.tokens import (
    LONGEST_TOKEN,
    QUEUE_TOKEN_LIFE_S,
    TRANSFER_CODE_LIFE_S,
    QueueToken,
    QueueTokens,
    SessionToken,
    SessionTokens,
    TransferCode,
    TransferCodes,
    proof_of,
)
from tests.engine.forging import ALPHABET, decoded, encoded, with_equal_ending

SECRET, OTHER = b"s" * 32, b"o" * 32
NOW_S = 1_800_000_000
TOKENS = QueueTokens({"a": SECRET}, "a")
SESSIONS = SessionTokens({"a": SECRET}, "a")
CODES = TransferCodes({"a": SECRET}, "a")
SESSION = SessionToken("e1", "u1", 7, 8, "j1", 5, NOW_S, NOW_S + 3600)
naturals = st.integers(0, 2**53 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=64)


def minted(user_id: str = "u1", tokens: QueueTokens = TOKENS, epoch: int = 5) -> str:
    return tokens.mint("e1", user_id, 7, 8, 9, epoch, NOW_S)


def problem_of(
    token: str, *, tokens: QueueTokens = TOKENS, event_id: str = "e1", epoch: int = 5, now_s: int = NOW_S
) -> str:
    with pytest.raises(Refused) as caught:
        tokens.check(token, event_id, epoch, now_s)
    code = "not_primary" if "later epoch" in caught.value.detail else "bad_token"
    assert caught.value.code == code
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


@pytest.mark.parametrize("kind", [QueueTokens, SessionTokens, TransferCodes])
def test_keys_that_are_none_are_refused(kind: type[QueueTokens | SessionTokens | TransferCodes]) -> None:
    with pytest.raises(ValueError, match="shorter than 32"):
        kind({"a": SECRET, "b": b"short"}, "a")
    with pytest.raises(KeyError):
        kind({"a": SECRET}, "b")


@given(texts, naturals, naturals, naturals, naturals, naturals)
def test_any_claims_of_a_place_come_back(
    user_id: str, arrival: int, number: int, generation: int, epoch: int, now_s: int
) -> None:
    token = TOKENS.mint("e1", user_id, arrival, number, generation, epoch, now_s)
    assert TOKENS.check(token, "e1", epoch, now_s) == QueueToken(
        "e1", user_id, arrival, number, generation, epoch, now_s
    )


@given(st.builds(SessionToken, st.just("e1"), texts, naturals, naturals, texts, naturals, naturals, naturals))
def test_any_claims_of_a_session_come_back(session: SessionToken) -> None:
    assert SESSIONS.check(SESSIONS.mint(session), "e1", session.epoch) == session


@given(texts, naturals, naturals, naturals)
def test_any_claims_of_a_transfer_come_back(user_id: str, arrival: int, generation: int, now_s: int) -> None:
    code = CODES.mint("e1", user_id, arrival, generation, now_s)
    assert CODES.check(code, "e1", now_s) == TransferCode("e1", user_id, arrival, generation, now_s)


@given(st.sampled_from(range(114)), st.sampled_from(ALPHABET + ".=+/ \n"))
def test_any_changed_character_is_found(at: int, character: str) -> None:
    token = minted("0123456789abcdef0123456789abcdef")
    changed = token[:at] + character + token[at + 1 :]
    if changed != token:
        problem_of(changed)


def test_there_is_one_text_for_one_token() -> None:
    for user_id in ("u", "uu", "uuu"):
        token = minted(user_id)
        for other in (token + "=", token + "==", token + "\n", token + "A", token + "AAAA", " " + token):
            problem_of(other)
        if len(token) % 4:
            assert "shortest form" in problem_of(with_equal_ending(token))
            assert decoded(with_equal_ending(token)) == decoded(token)


def by_hand(person: bytes, key: bytes, claims: list[object]) -> str:
    head = b"\x01" + blake2b(b"a", digest_size=4).digest()
    body = json.dumps(claims, separators=(",", ":")).encode()
    return encoded(head + blake2b(head + body, digest_size=20, key=key, person=person).digest() + body)


def test_the_form_is_the_one_that_is_written_down() -> None:
    assert minted() == by_hand(b"stanchion queue", SECRET, ["e1", "u1", 7, 8, 9, 5, NOW_S])
    session: list[object] = ["e1", "u1", 7, 8, "j1", 5, NOW_S, NOW_S + 3600]
    assert SESSIONS.mint(SESSION) == by_hand(b"stn session", SECRET, session)
    derived = blake2b(digest_size=32, key=SECRET, person=b"stn transfer key").digest()
    assert CODES.mint("e1", "u1", 7, 9, NOW_S) == by_hand(b"stn transfer", derived, ["e1", "u1", 7, 9, NOW_S])


def test_a_session_is_of_its_event_and_of_no_later_epoch_and_never_expires_by_itself() -> None:
    token = SESSIONS.mint(SESSION)
    assert SESSIONS.check(token, "e1", 6) == SESSION
    with pytest.raises(Refused, match="another event"):
        SESSIONS.check(token, "e2", 5)
    with pytest.raises(Refused, match="later epoch"):
        SESSIONS.check(token, "e1", 4)


def test_a_transfer_code_is_of_its_event_and_good_for_five_minutes() -> None:
    code = CODES.mint("e1", "u1", 7, 9, NOW_S)
    assert CODES.check(code, "e1", NOW_S + TRANSFER_CODE_LIFE_S - 1).generation == 9
    with pytest.raises(Refused, match="has expired"):
        CODES.check(code, "e1", NOW_S + TRANSFER_CODE_LIFE_S)
    with pytest.raises(Refused, match="another event"):
        CODES.check(code, "e2", NOW_S)


def test_rotation_with_overlap_voids_no_session_and_no_code() -> None:
    secrets = {"a": SECRET, "b": OTHER}
    assert SessionTokens(secrets, "b").check(SESSIONS.mint(SESSION), "e1", 5) == SESSION
    assert TransferCodes(secrets, "b").check(CODES.mint("e1", "u1", 7, 9, NOW_S), "e1", NOW_S).arrival == 7


def test_a_proof_is_never_the_word_for_no_proof() -> None:
    assert proof_of("k1") == proof_of("k1") != proof_of("k2")
    assert 0 < proof_of("k1") < 2**64
