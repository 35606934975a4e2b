"""Records: what goes into the log comes out of it, and nothing unknown is passed over."""

import inspect
from collections.abc import Sequence
from typing import get_type_hints

import msgpack
import pytest

from engine import records
from engine.errors import Damaged
from engine.records import KINDS, Joined, Left, Started, decode, encode, kind_of

VALUES: dict[object, object] = {
    int: 7,
    str: "s",
    bool: True,
    str | None: None,
    Sequence[int]: [1, 2],
    records.SettingsMap: {"a": 1},
}


def sample(cls: type[records.Record]) -> records.Record:
    return cls(*(VALUES[hint] for hint in get_type_hints(cls).values()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_the_way_through_msgpack(kind: str) -> None:
    record = sample(KINDS[kind][0])
    assert kind_of(record) == kind == type(record).__name__.lower()
    assert decode(msgpack.unpackb(msgpack.packb(encode(record)))) == record


def test_every_record_of_the_vocabulary_has_a_kind() -> None:
    classes = {cls for _, cls in inspect.getmembers(records, inspect.isclass) if hasattr(cls, "_fields")}
    assert classes == {cls for cls, _ in KINDS.values()}


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(Damaged, match="'teleported' version 1"):
        decode(["teleported", 1, "e"])


def test_an_unknown_version_is_refused_naming_kind_and_version() -> None:
    with pytest.raises(Damaged, match="'left' version 2"):
        decode(["left", 2, "e", 1, 1])


@pytest.mark.parametrize("array", [[], ["left"], {"left": 1}, "left", None, [None, 1], ["left", 1, "e"], [[], 1]])
def test_what_is_no_record_is_refused(array: object) -> None:
    with pytest.raises(Damaged):
        decode(array)  # type: ignore[arg-type]


def test_the_time_of_a_record_is_where_every_reader_looks_for_it() -> None:
    assert Started(5, 1, 9, 0, None).at_ms == 5
    assert Left("e", 6, 1).at_ms == 6
    assert all("at_ms" in cls._fields for cls, _ in KINDS.values())
    assert Joined._fields[0] == "event_id"
