"""Enqueue tokens: what a shop signs is read to the letter, and what it may not sign is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.enqueue import Enqueue, EnqueueTokens
from engine.errors import Refused
from engine.identities import is_identity
from engine.signatures import public_of
from tests.engine.forging import signed, with_equal_ending

SHOP, PARTNER = bytes(range(32)), bytes(range(32, 64))
NOW_S = 1_800_000_000
CHECKER = EnqueueTokens({"shop": (public_of(SHOP), None), "partner": (public_of(PARTNER), {"e1", "e3"})})
HEADER = {"alg": "EdDSA", "typ": "stanchion-enqueue+jwt", "kid": "shop"}
CLAIMS: dict[str, object] = {"aud": "e1", "sub": "u1", "jti": "j1", "exp": NOW_S + 60}
identities = st.text(st.characters(codec="utf-8"), min_size=1, max_size=32).filter(is_identity)


def token_of(**changes: object) -> str:
    """Return a shop's token with these changes to its claims (None drops)."""
    return signed(SHOP, HEADER, {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None})


def problem_of(token: str, event_id: str = "e1") -> str:
    with pytest.raises(Refused) as caught:
        CHECKER.check(token, event_id, NOW_S)
    assert (caught.value.code, caught.value.status) == ("bad_enqueue_token", 401)
    return caught.value.detail


def test_a_token_with_the_least_says_who_may_join() -> None:
    assert CHECKER.check(token_of(), "e1", NOW_S) == Enqueue("u1", "j1", 0, None, 1, NOW_S + 60)


@given(identities, identities, st.integers(0, 9), identities, st.integers(1, 20), st.integers(-4, 605))
def test_everything_a_shop_says_is_told(sub: str, jti: str, priority: int, group: str, size: int, ahead_s: int) -> None:
    claims = {"sub": sub, "jti": jti, "priority": priority, "group": group, "size": size, "exp": NOW_S + ahead_s}
    told = CHECKER.check(token_of(**claims), "e1", NOW_S)
    assert told == Enqueue(sub, jti, priority, group, size, NOW_S + ahead_s)


def test_a_group_holds_the_place_where_there_is_one() -> None:
    assert CHECKER.check(token_of(), "e1", NOW_S).identity == "u1"
    assert CHECKER.check(token_of(group="g1", size=4), "e1", NOW_S).identity == "g1"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["e1"]},
        {"exp": NOW_S + 60.9},
        {"nbf": NOW_S + 5},
        {"iss": "shop", "iat": NOW_S, "basket": {"deep": [1]}},
        {"size": 1},
    ],
    ids=["aud as a list of one", "exp with a fraction", "nbf", "claims beyond these", "size 1 without a group"],
)
def test_what_other_libraries_write_is_taken(changes: dict[str, object]) -> None:
    assert CHECKER.check(token_of(**changes), "e1", NOW_S) == Enqueue("u1", "j1", 0, None, 1, NOW_S + 60)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no aud": ({"aud": None}, "`aud`"),
    "no sub": ({"sub": None}, "`sub`"),
    "no jti": ({"jti": None}, "`jti`"),
    "no exp": ({"exp": None}, "`exp`"),
    "another event": ({"aud": "e2"}, "another event"),
    "two events": ({"aud": ["e1", "e2"]}, "$.aud"),
    "no event": ({"aud": []}, "$.aud"),
    "expired": ({"exp": NOW_S - 5}, "expired"),
    "expired for ever": ({"exp": 0}, "expired"),
    "too long a life": ({"exp": NOW_S + 606}, "lives too long"),
    "a life without end": ({"exp": 2**52}, "lives too long"),
    "exp as text": ({"exp": str(NOW_S)}, "$.exp"),
    "exp as a truth": ({"exp": True}, "$.exp"),
    "negative exp": ({"exp": -1}, "$.exp"),
    "endless exp": ({"exp": 1e300}, "$.exp"),
    "not yet": ({"nbf": NOW_S + 6}, "nbf"),
    "nbf as text": ({"nbf": "now"}, "$.nbf"),
    "empty sub": ({"sub": ""}, "bad sub"),
    "long sub": ({"sub": "u" * 129}, "bad sub"),
    "sub with a NUL": ({"sub": "u\x00"}, "bad sub"),
    "sub turned around": ({"sub": "u\u202e"}, "bad sub"),
    "sub as a number": ({"sub": 1}, "$.sub"),
    "empty jti": ({"jti": ""}, "bad jti"),
    "long jti": ({"jti": "é" * 65}, "bad jti"),
    "empty group": ({"group": ""}, "bad group"),
    "long group": ({"group": "g" * 129}, "bad group"),
    "priority 10": ({"priority": 10}, "$.priority"),
    "negative priority": ({"priority": -1}, "$.priority"),
    "priority with a fraction": ({"priority": 1.0}, "$.priority"),
    "priority as a truth": ({"priority": True}, "$.priority"),
    "priority as text": ({"priority": "9"}, "$.priority"),
    "size 0": ({"group": "g", "size": 0}, "$.size"),
    "size 21": ({"group": "g", "size": 21}, "$.size"),
    "size with a fraction": ({"group": "g", "size": 2.0}, "$.size"),
    "size without a group": ({"size": 2}, "size and no group"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_refusal_says_what_exactly_is_wrong(name: str) -> None:
    changes, word = WRONG[name]
    assert word in problem_of(token_of(**changes))


def test_clocks_may_differ_by_five_seconds_and_no_more() -> None:
    for ahead_s in (-4, 605):
        assert CHECKER.check(token_of(exp=NOW_S + ahead_s), "e1", NOW_S).exp_s == NOW_S + ahead_s
    for ahead_s in (-5, 606):
        problem_of(token_of(exp=NOW_S + ahead_s))


def test_a_priority_named_twice_is_refused() -> None:
    raw = msgspec.json.encode({**CLAIMS, "priority": 0})[:-1] + b',"priority":9}'
    assert "twice" in problem_of(signed(SHOP, HEADER, raw))


def test_claims_without_a_floor_are_refused() -> None:
    for depth in (10, 900, 1100, 2700):
        assert "no JSON" in problem_of(signed(SHOP, HEADER, msgspec.json.encode(CLAIMS)[:-1] + b',"x":' + b"[" * depth))


def test_a_key_signs_for_the_events_it_was_registered_for() -> None:
    for event_id, good in (("e1", True), ("e2", False), ("e3", True)):
        token = signed(PARTNER, {**HEADER, "kid": "partner"}, {**CLAIMS, "aud": event_id})
        if good:
            assert CHECKER.check(token, event_id, NOW_S).sub == "u1"
        else:
            assert "may not sign it: 'partner'" in problem_of(token, event_id)


def test_a_token_of_one_shop_is_not_one_of_another() -> None:
    assert "not signed by that key" in problem_of(signed(PARTNER, HEADER, CLAIMS))
    assert "may not sign" in problem_of(signed(SHOP, {**HEADER, "kid": "nobody"}, CLAIMS))


def test_where_no_shop_is_registered_every_token_is_refused() -> None:
    with pytest.raises(Refused, match="may not sign"):
        EnqueueTokens({}).check(token_of(), "e1", NOW_S)


def test_the_longest_legal_token_fits() -> None:
    longest = {"sub": "é" * 64, "jti": "ü" * 64, "group": "ö" * 64, "size": 20, "priority": 9, "nbf": NOW_S}
    assert CHECKER.check(token_of(**longest, iss="https://shop.example.com"), "e1", NOW_S).group == "ö" * 64
    assert "too long" in problem_of(token_of(pad="x" * 4096))


def test_other_spellings_of_a_token_are_refused() -> None:
    for spelling in (with_equal_ending(token_of()), token_of() + "=", token_of() + "\n"):
        problem_of(spelling)


def test_keys_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        EnqueueTokens({"shop": (b"short", None)})
    with pytest.raises(ValueError, match="anyone could sign"):
        EnqueueTokens({"shop": (bytes(32), None)})
