"""Settings: bounds, relations, and one answer that names all that is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Refused
from engine.settings import KNOBS, Settings, is_event_id, settings_from


def problems_of(changes: dict[str, object], base: Settings | None = None) -> dict[str, str]:
    with pytest.raises(Refused) as caught:
        settings_from(changes, base)
    assert caught.value.status == 422
    return dict(caught.value.errors)


def test_the_defaults_are_within_their_own_bounds_and_relations() -> None:
    assert settings_from({}) == Settings()
    assert settings_from(Settings().as_map()) == Settings()


def test_every_setting_has_a_knob_and_every_knob_a_setting() -> None:
    assert list(Settings().as_map()) == list(KNOBS)


@pytest.mark.parametrize(("name", "knob"), [(name, knob) for name, knob in KNOBS.items() if knob.kind == "int"])
def test_a_number_one_beyond_its_bounds_is_refused_by_name(name: str, knob: object) -> None:
    low, high = KNOBS[name].low, KNOBS[name].high
    assert name in problems_of({name: low - 1})
    assert name in problems_of({name: high + 1})


@pytest.mark.parametrize("value", [True, 1.5, "7", [], {}])
def test_a_number_must_be_a_whole_number(value: object) -> None:
    assert "batch_size" in problems_of({"batch_size": value})


def test_null_is_taken_only_where_it_means_something() -> None:
    assert settings_from({"max_active": None}).max_active is None
    assert "or null" not in problems_of({"batch_size": None})["batch_size"]
    assert "or null" in problems_of({"max_active": -1})["max_active"]


def test_everything_wrong_is_told_at_once() -> None:
    assert set(problems_of({"batch_size": 0, "queueing": "lifo", "colour": "red"})) == {
        "batch_size",
        "queueing",
        "colour",
    }


@pytest.mark.parametrize(
    ("changes", "at_fault"),
    [
        ({"session_ttl_s": 700, "session_max_s": 600}, "session_ttl_s"),
        ({"claim_window_s": 2000}, "claim_window_s"),
        ({"presence_timeout_s": 301}, "presence_timeout_s"),
        ({"safety_margin": 5}, "safety_margin"),
        ({"safety_margin": 5, "max_active": 5}, "safety_margin"),
        ({"opens_at_ms": 5, "closes_at_ms": 5}, "closes_at_ms"),
        ({"lobby_opens_at_ms": 5}, "lobby_opens_at_ms"),
        ({"lobby": True, "lobby_opens_at_ms": 9, "opens_at_ms": 9}, "lobby_opens_at_ms"),
        ({"return_to": "https://shop.example/"}, "return_to"),
        ({"return_to": "https://shop.example.evil/", "return_to_origins": ["https://shop.example"]}, "return_to"),
        ({"return_to": "https://shop.example@evil/", "return_to_origins": ["https://shop.example"]}, "return_to"),
        ({"return_to_origins": ["javascript:alert(1)"]}, "return_to_origins"),
        ({"return_to_origins": "https://shop.example"}, "return_to_origins"),
        ({"name": "two\nlines"}, "name"),
        ({"page": {"n": 2**60}}, "page"),
        ({"page": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}}, "page"),
        ({"variants": {"a": object()}}, "variants"),
        ({"variants": {1: "a"}}, "variants"),
    ],
)
def test_relations_between_settings_hold(changes: dict[str, object], at_fault: str) -> None:
    assert list(problems_of(changes)) == [at_fault]


def test_a_relation_is_checked_against_what_was_set_before() -> None:
    base = settings_from({"max_active": 10, "safety_margin": 9})
    assert "safety_margin" in problems_of({"max_active": 9}, base)


def test_changes_are_merged_into_what_was_set_before() -> None:
    merged = settings_from({"batch_size": 7}, settings_from({"name": "Summer"}))
    assert (merged.name, merged.batch_size) == ("Summer", 7)


@given(st.dictionaries(st.sampled_from([*KNOBS, "nonsense"]), st.none() | st.booleans() | st.integers() | st.text()))
def test_any_input_gives_settings_or_a_refusal_and_never_another_error(changes: dict[str, object]) -> None:
    try:
        settings = settings_from(changes)
    except Refused as refused:
        assert refused.errors
    else:
        assert settings_from(settings.as_map()) == settings


@pytest.mark.parametrize("text", ["e1", "summer-2026", "a", "0_-", "a" * 64])
def test_good_event_ids_are_taken(text: str) -> None:
    assert is_event_id(text)


@pytest.mark.parametrize("text", ["", "-a", "_a", "A", "a b", "a/b", "..", "a" * 65, "a\n", "é", "a\x00"])
def test_bad_event_ids_are_not(text: str) -> None:
    assert not is_event_id(text)
