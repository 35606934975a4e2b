"""The verbs of the backend as bytes, and calls by number: what is asked for arrives, and every call has one end."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.actor import By, Entrant, Holder, Whom
from engine.backend import Backend
from engine.errors import STATUS_OF_CODE, Refused
from server.replication.link import LinkClosed
from server.replication.messages import Answer, Call
from server.replication.verbs import (
    VERBS,
    Caller,
    decode_call,
    decode_refusal,
    decode_result,
    encode_call,
    encode_refusal,
    encode_result,
    perform,
)
from tests.conformance.backends import Clock, open_memory

OPS = By("ops", "because of the rain")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
PLAIN = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXTS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
SCALARS: dict[object, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: INTEGERS,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    type(None): st.none(),
    object: PLAIN,
}
REFUSALS = st.builds(
    Refused,
    st.sampled_from(sorted(STATUS_OF_CODE)),
    TEXTS,
    reason=st.none() | TEXTS,
    field=st.none() | TEXTS,
    errors=st.lists(st.tuples(TEXTS, TEXTS), max_size=3),
    retry_after_s=st.none() | st.integers(0, 1000),
    primary_url=st.none() | TEXTS,
)


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of an annotation; of a NamedTuple or a Struct with every field drawn, defaults or not."""
    if hint in SCALARS:
        return SCALARS[hint]
    if hasattr(hint, "_fields") or hasattr(hint, "__struct_fields__"):
        return st.tuples(*map(strategy_of, get_type_hints(hint).values())).map(lambda values: hint(*values))
    inner = [strategy_of(each) for each in get_args(hint)]
    if get_origin(hint) is UnionType:
        return st.one_of(inner)
    if get_origin(hint) is tuple:
        return st.tuples(*inner)
    assert issubclass(get_origin(hint), Mapping), hint
    return st.dictionaries(*inner, max_size=4)


@st.composite
def calls(draw: Callable[..., Any]) -> tuple[str, tuple[object, ...], dict[str, object]]:
    """Return (verb, arguments, options) as somebody might write them: what has a default may be left out."""
    verb = draw(st.sampled_from(sorted(VERBS)))
    method = getattr(Backend, verb)
    hints = get_type_hints(method)
    arguments: list[object] = []
    options: dict[str, object] = {}
    by_position = True
    for each in list(inspect.signature(method).parameters.values())[1:]:
        by_position = by_position and each.kind is not each.KEYWORD_ONLY
        if each.default is not each.empty and draw(st.booleans()):
            by_position = False
        elif by_position:
            arguments.append(draw(strategy_of(hints[each.name])))
        else:
            options[each.name] = draw(strategy_of(hints[each.name]))
    return verb, tuple(arguments), options


def bound(verb: str, arguments: tuple[object, ...], options: dict[str, object]) -> dict[str, object]:
    """Return what a backend is given, by name, with the defaults."""
    call = inspect.signature(getattr(Backend, verb)).bind(None, *arguments, **options)
    call.apply_defaults()
    return dict(call.arguments)


def refusal_of(why: Refused) -> dict[str, object]:
    return vars(why) | {"text": str(why)}


# ---- bytes ----------------------------------------------------------------------------------------------


def test_every_verb_that_decides_something_travels_and_no_other() -> None:
    reading = {"place", "session", "find", "visitors", "event", "events", "stats", "fairness", "draw_entries"}
    of_the_process = {"start", "close", "tick", "snapshot"}
    verbs = {name for name, method in vars(Backend).items() if inspect.iscoroutinefunction(method)}
    assert set(VERBS) == verbs - reading - of_the_process


@settings(deadline=None, max_examples=60)
@given(calls())
def test_a_call_arrives_as_it_was_made(call: tuple[str, tuple[object, ...], dict[str, object]]) -> None:
    verb, arguments, options = decode_call(encode_call(*call))
    assert verb == call[0]
    given_now, given_then = bound(verb, arguments, options), bound(*call)
    assert given_now == given_then
    assert list(map(type, given_now.values())) == list(map(type, given_then.values()))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_result_arrives_as_it_was_given(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(sorted(VERBS)))
    hint = get_type_hints(getattr(Backend, verb))["return"]
    result = data.draw(strategy_of(hint))
    arrived = decode_result(verb, encode_result(verb, result))
    assert arrived == result
    assert type(arrived) is type(result)


@settings(deadline=None, max_examples=60)
@given(REFUSALS)
def test_a_refusal_arrives_as_it_was_raised(why: Refused) -> None:
    assert refusal_of(decode_refusal(encode_refusal(why))) == refusal_of(why)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_call_are_a_bad_request(data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode_call(data)
    assert refused.value.code == "bad_request"


@settings(deadline=None, max_examples=60)
@given(calls(), st.data())
def test_a_garbled_call_is_another_call_or_a_bad_request(
    call: tuple[str, tuple[object, ...], dict[str, object]], data: st.DataObject
) -> None:
    garbled = bytearray(encode_call(*call))
    garbled[data.draw(st.integers(0, len(garbled) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        verb, arguments, options = decode_call(bytes(garbled))
    except Refused as refused:
        assert refused.code == "bad_request"
    else:
        bound(verb, arguments, options)


@pytest.mark.parametrize(
    "call",
    [
        ["tick"],
        ["start"],
        ["__init__", "e1"],
        ["join", "e1"],
        ["join", "e1", ["u1", "proof"]],
        ["join", 1, ["u1"]],
        ["leave", "e1", [1, "u1"], "and more"],
        ["remove", "e1", [], ["ops"], 1],
        {"verb": "join"},
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_the_contract_is_a_bad_request(call: object) -> None:
    with pytest.raises(Refused) as refused:
        decode_call(msgspec.msgpack.encode(call))
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("tick", ()),
        ("place", ("e1", Holder(1, "u1"))),
        ("join", ("e1",)),
        ("join", ("e1", Entrant("\ud800"))),
        ("admit", ("e1", Whom(number=2**64), OPS)),
    ],
)
def test_what_no_bytes_can_say_is_a_bad_request_before_it_is_sent(verb: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(Refused) as refused:
        encode_call(verb, arguments, {})
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode(["no_such_code", "", None, None, [], None])])
def test_an_answer_that_cannot_be_read_is_an_outcome_that_is_not_known(data: bytes) -> None:
    why = decode_refusal(data)
    assert (why.code, why.retry_after_s) == ("backend_unavailable", 1)
    assert "not known" in why.detail
    with pytest.raises(Refused, match="not known"):
        decode_result("join", data)


# ---- the primary's side -------------------------------------------------------------------------------------


@asynccontextmanager
async def primary(folder: Path) -> AsyncIterator[Backend]:
    """A backend with an event that is open."""
    backend = await open_memory(folder, Clock())
    try:
        await backend.configure("e1", {}, OPS, replace=True)
        await backend.control("e1", "open", OPS)
        yield backend
    finally:
        await backend.close()


async def test_a_call_is_performed_and_answered_with_the_lsn_it_presupposes(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:
        joining = Call(7, encode_call("join", ("e1", Entrant("u1", proof=5)), {}))
        answer = await perform(backend, joining)
        place = decode_result("join", answer.body)
        assert (answer.call_id, answer.is_refusal, answer.lsn) == (7, False, place.version)
        assert (place.user_id, place.arrival, place.fresh) == ("u1", 1, True)
        await backend.join("e1", Entrant("u2"))
        answer = await perform(backend, joining)
        again = decode_result("join", answer.body)
        assert (again.arrival, again.fresh, again.proven) == (1, False, True)
        assert answer.lsn == backend.status().version


async def test_a_call_without_a_result_presupposes_everything_up_to_its_end(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:
        place = await backend.join("e1", Entrant("u1"))
        answer = await perform(backend, Call(8, encode_call("leave", ("e1", Holder(1, "u1")), {})))
        assert decode_result("leave", answer.body) is None
        assert answer.lsn == backend.status().version > place.version


async def test_an_event_is_changed_with_its_options_and_answered_as_a_pair(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:
        options = {"replace": False, "revision": (await backend.event("e1")).revision}
        changing = Call(9, encode_call("configure", ("e1", {"batch_size": 7}, OPS), options))
        answer = await perform(backend, changing)
        view, created = decode_result("configure", answer.body)
        assert (view.settings["batch_size"], created, answer.lsn) == (7, False, view.version)
        stale = await perform(backend, changing)
        assert decode_refusal(stale.body).code == "precondition_failed"


async def test_a_refusal_presupposes_what_the_primary_knew(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:
        answer = await perform(backend, Call(10, encode_call("join", ("nowhere", Entrant("u1")), {})))
        assert answer.is_refusal and answer.lsn == backend.status().version
        assert decode_refusal(answer.body).code == "not_found"


async def test_garbage_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:
        version = backend.status().version
        answer = await perform(backend, Call(11, b"garbage"))
        assert (answer.call_id, answer.lsn, answer.is_refusal) == (11, version, True)
        assert backend.status().version == version
        assert decode_refusal(answer.body).code == "bad_request"


class Broken:
    """A backend with a fault in it."""

    async def join(self, event_id: str, entrant: Entrant) -> None:
        raise ZeroDivisionError("the secret of u1")

    def status(self) -> Any:
        return type("Status", (), {"version": 3})


async def test_a_fault_of_the_primary_is_logged_and_told_without_its_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr("server.replication.verbs.log", type("Log", (), {"exception": logged.append}))
    answer = await perform(Broken(), Call(1, encode_call("join", ("e1", Entrant("u1")), {})))  # type: ignore[arg-type]
    why = decode_refusal(answer.body)
    assert (why.code, answer.is_refusal, answer.lsn) == ("internal", True, 3)
    assert "secret" not in why.detail
    assert logged


# ---- the follower's side ----------------------------------------------------------------------------------


def caller(applied_lsn: int = 0, **options: float) -> tuple[Caller, list[Call]]:
    """Return a caller and what it sends."""
    sent: list[Call] = []

    async def send(call: Call) -> None:
        sent.append(call)

    return Caller(send, applied_lsn, **options), sent


async def ask(calling: Caller, verb: str = "leave", *arguments: object) -> "asyncio.Task[Any]":
    """Begin a call, and come back when it has been sent."""
    task = asyncio.create_task(calling.call(verb, *(arguments or ("e1", Holder(1, "u1")))))
    await asyncio.sleep(0)
    return task


def done(call: Call, lsn: int = 0) -> Answer:
    return Answer(call.call_id, lsn, encode_result("leave", None), is_refusal=False)


async def test_a_whole_call_goes_there_and_back(tmp_path: Path) -> None:
    async with primary(tmp_path) as backend:

        async def send(call: Call) -> None:
            calling.answered(await perform(backend, call))

        calling = Caller(send, applied_lsn=1_000)
        place = await calling.call("join", "e1", Entrant("u1"))
        assert place == replace(await backend.touch("e1", Holder(1, "u1")), fresh=True)
        with pytest.raises(Refused, match="there is no such event"):
            await calling.call("tell", "nowhere", "", OPS)
        removed = await calling.call("remove", "e1", Whom(arrival=1), OPS, ban=True)
        assert removed.status == "removed"
        with pytest.raises(Refused) as refused:
            await calling.call("join", "e1", Entrant("u1"))
        assert refused.value.code == "banned"
        assert calling.pending == 0


async def test_answers_find_their_calls_in_any_order() -> None:
    calling, sent = caller()
    first, second = await ask(calling), await ask(calling)
    assert len({call.call_id for call in sent}) == 2
    why = Refused("gone", "this place is not there any more", reason="lost")
    calling.answered(Answer(sent[1].call_id, 0, encode_refusal(why), is_refusal=True))
    calling.answered(done(sent[0]))
    assert await first is None
    with pytest.raises(Refused) as refused:
        await second
    assert refusal_of(refused.value) == refusal_of(why)


async def test_an_answer_is_spoken_of_once_its_lsn_is_applied() -> None:
    calling, sent = caller(applied_lsn=4)
    early, late, last = [await ask(calling) for _ in range(3)]
    for call, lsn in zip(sent, (5, 7, 6), strict=True):
        calling.answered(done(call, lsn))
    await asyncio.sleep(0)
    assert not (early.done() or late.done() or last.done())
    calling.applied(6)
    await asyncio.gather(early, last)
    assert not late.done()
    calling.applied(7)
    assert await late is None


async def test_when_the_link_is_gone_every_call_ends_and_says_that_its_outcome_is_not_known() -> None:
    calling, sent = caller()
    unanswered, unapplied = await ask(calling), await ask(calling)
    calling.answered(done(sent[1], 9))
    calling.drop(Refused("not_primary", "there is no primary now", primary_url="http://b"))
    calling.applied(9)
    for task in (unanswered, unapplied):
        with pytest.raises(Refused, match="not known") as refused:
            await task
        assert (refused.value.code, refused.value.retry_after_s) == ("not_primary", 1)
        assert refused.value.primary_url == "http://b"
    with pytest.raises(Refused) as refused:
        await calling.call("leave", "e1", Holder(1, "u1"))
    assert refused.value.detail == "there is no primary now"
    assert len(sent) == 2 and calling.pending == 0


async def test_a_call_that_cannot_be_sent_is_an_outcome_that_is_not_known() -> None:
    async def send(call: Call) -> None:
        calling.drop(Refused("backend_unavailable", "gone"))
        raise LinkClosed

    calling = Caller(send)
    with pytest.raises(Refused, match="not known") as refused:
        await calling.call("leave", "e1", Holder(1, "u1"))
    assert refused.value.code == "backend_unavailable"
    assert calling.pending == 0


async def test_a_call_is_not_waited_for_for_ever_and_a_late_answer_is_no_matter() -> None:
    calling, sent = caller(timeout_s=0.01)
    with pytest.raises(Refused, match="not known") as refused:
        await calling.call("leave", "e1", Holder(1, "u1"))
    assert (refused.value.code, refused.value.retry_after_s) == ("backend_unavailable", 1)
    calling.answered(done(sent[0]))
    calling.answered(Answer(99, 0, b"", is_refusal=False))
    assert calling.pending == 0


async def test_whoever_hangs_up_leaves_nothing_behind() -> None:
    calling, sent = caller()
    task = await ask(calling)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calling.pending == 0
    calling.answered(done(sent[0]))
    calling.drop(Refused("not_primary", "gone"))


async def test_an_answer_of_another_verb_is_an_outcome_that_is_not_known() -> None:
    calling, sent = caller()
    task = await ask(calling, "join", "e1", Entrant("u1"))
    calling.answered(done(sent[0]))
    with pytest.raises(Refused, match="not known"):
        await task
