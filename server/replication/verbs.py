"""The backend's verbs as bytes: what a follower sends on to the primary, and what comes back.

Everything is read off the contract once, at import: a verb's call is an array of its name and its arguments in the
order of the signature, options last, and its result is what the signature says. So a verb that changes there changes
here, and what does not fit the signature is refused before it reaches a backend.

A call has one of three ends: the primary's answer, the primary's refusal, or a refusal that says that the outcome is
not known, because the link or the time ran out. The last may be repeated where repeating is safe: a join under its
Idempotency-Key is.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any, NamedTuple, Union, get_type_hints

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import astuple

from engine.backend import Backend
from engine.errors import STATUS_OF_CODE, Refused
from engine.views import EventView, Place, ReleaseResult, Session
from server.replication.link import LinkClosed
from server.replication.messages import Answer, Call

TIMEOUT_S = 10.0
RETRY_AFTER_S = 1
NOT_KNOWN = "whether it was done is not known"

log = structlog.get_logger(__name__)


class Verb(NamedTuple):
    """One verb: its call as a type, how many arguments go by position, the names of the rest, and its result."""

    name: str
    call: type[Struct]
    positional: int
    options: tuple[str, ...]
    result: "msgspec.msgpack.Decoder[Any]"


def _verb(method: Callable[..., Any]) -> Verb:
    """Read a verb off its signature."""
    hints, name = get_type_hints(method), method.__name__
    parameters = [each for each in inspect.signature(method).parameters.values() if each.name != "self"]
    fields: list[Any] = [
        (each.name, hints[each.name]) + (() if each.default is each.empty else (each.default,)) for each in parameters
    ]
    call = msgspec.defstruct(
        name, fields, tag=name, array_like=True, frozen=True, forbid_unknown_fields=True, module=__name__
    )
    options = tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
    result = msgspec.msgpack.Decoder(hints["return"])
    return Verb(name, call, len(parameters) - len(options), options, result)


# Those that decide something, so that only a primary can; a follower reads from what it holds itself.
VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        method.__name__: _verb(method)
        for method in (
            Backend.join,
            Backend.touch,
            Backend.leave,
            Backend.extend_claim,
            Backend.transfer,
            Backend.readmit,
            Backend.redeem,
            Backend.extend_session,
            Backend.complete,
            Backend.admit,
            Backend.remove,
            Backend.release,
            Backend.configure,
            Backend.control,
            Backend.tell,
            Backend.delete,
        )
    }
)


class Refusal(Struct, array_like=True, frozen=True):
    """A Refused on its way."""

    code: str
    detail: str
    reason: str | None
    field: str | None
    errors: tuple[tuple[str, str], ...]
    retry_after_s: int | None
    primary_url: str | None = None

    @classmethod
    def of(cls, why: Refused) -> "Refusal":
        """Return what is to be sent of a refusal."""
        return cls(why.code, why.detail, why.reason, why.field, why.errors, why.retry_after_s, why.primary_url)

    def refused(self) -> Refused:
        """Return the refusal, new, so that each who is told may raise it."""
        return Refused(
            self.code,
            self.detail,
            reason=self.reason,
            field=self.field,
            errors=self.errors,
            retry_after_s=self.retry_after_s,
            primary_url=self.primary_url,
        )


_ENCODER = msgspec.msgpack.Encoder()
_CALLS = msgspec.msgpack.Decoder(Union[tuple(verb.call for verb in VERBS.values())])  # noqa: UP007
_VERB_OF: Mapping[type[Struct], Verb] = {verb.call: verb for verb in VERBS.values()}
_REFUSALS = msgspec.msgpack.Decoder(Refusal)


def encode_call(verb: str, arguments: Sequence[object], options: Mapping[str, object]) -> bytes:
    """Return a call as bytes; raises Refused("bad_request") for a verb that does not travel, or what no bytes hold."""
    found = VERBS.get(verb)
    if found is None:
        raise Refused("bad_request", f"{verb} is nothing that could be asked of a primary")
    try:
        return _ENCODER.encode(found.call(*arguments, **options))
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise Refused("bad_request", f"{verb}: {error}") from None


def decode_call(data: bytes) -> tuple[str, tuple[object, ...], dict[str, object]]:
    """Return (verb, arguments, options); raises Refused("bad_request") for what is no call of a verb."""
    try:
        call = _CALLS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused("bad_request", f"this is no call: {error}") from None
    verb, values = _VERB_OF[type(call)], astuple(call)
    return verb.name, values[: verb.positional], dict(zip(verb.options, values[verb.positional :], strict=True))


def encode_result(verb: str, value: object) -> bytes:
    """Return what a verb came to as bytes."""
    return _ENCODER.encode(value)


def decode_result(verb: str, data: bytes) -> Any:
    """Return what a verb came to; raises Refused("backend_unavailable") for bytes that are no result of it."""
    try:
        return VERBS[verb].result.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _unknown(f"the primary's answer cannot be read ({error})") from None


def encode_refusal(why: Refused) -> bytes:
    """Return a refusal as bytes."""
    return _ENCODER.encode(Refusal.of(why))


def decode_refusal(data: bytes) -> Refused:
    """Return a refusal; a code that is not known here, or no refusal at all, is an outcome that is not known."""
    try:
        refusal = _REFUSALS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _unknown(f"the primary's refusal cannot be read ({error})")
    if refusal.code not in STATUS_OF_CODE:
        return _unknown(f"the primary refused with a code that is not known here, {refusal.code}")
    return refusal.refused()


async def perform(backend: Backend, call: Call) -> Answer:
    """Run a call and return the answer to send, whatever comes of it; `lsn` is what it presupposes.

    What is no refusal is a fault of this program: it is logged, and refused as such.
    """
    try:
        verb, arguments, options = decode_call(call.body)
        result = await getattr(backend, verb)(*arguments, **options)
        return Answer(call.call_id, _lsn_of(backend, result), encode_result(verb, result), is_refusal=False)
    except Refused as refused:
        why = refused
    except Exception:
        log.exception("a call of a follower failed")
        why = Refused("internal", "something went wrong here; it was noted")
    return Answer(call.call_id, backend.status().version, encode_refusal(why), is_refusal=True)


def _lsn_of(backend: Backend, result: object) -> int:
    """Return the LSN a result was computed at; one that does not say so is of the newest."""
    if isinstance(result, Place | Session | EventView | ReleaseResult):
        return result.version
    return backend.status().version


def _unknown(what: str) -> Refused:
    return Refused("backend_unavailable", f"{what}; {NOT_KNOWN}", retry_after_s=RETRY_AFTER_S)


class _Pending(NamedTuple):
    """A call under way: what it was, who waits for its end, and when that will have taken too long."""

    verb: str
    end: "asyncio.Future[Any]"
    expiry: asyncio.TimerHandle


class Caller:
    """The calls of one link, by number, until each has its answer and what that presupposes is applied here.

    `send` carries a message to the primary; it may raise LinkClosed. One link, one caller: after `drop` every call
    is refused. `applied_lsn` is what this follower has applied when the link begins.
    """

    def __init__(
        self, send: Callable[[Call], Awaitable[None]], applied_lsn: int = 0, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._send = send
        self._applied_lsn = applied_lsn
        self._timeout_s = timeout_s
        self._newest_id = 0
        self._pending: dict[int, _Pending] = {}
        self._ahead: list[tuple[int, int, Answer]] = []
        self._dropped: Refusal | None = None

    @property
    def pending(self) -> int:
        """Return how many calls are under way."""
        return len(self._pending)

    async def call(self, verb: str, *arguments: object, **options: object) -> Any:
        """Have the primary run a verb and return what came of it.

        Raises Refused as the primary did, or one that says that the outcome is not known.
        """
        if self._dropped is not None:
            raise self._dropped.refused()
        body = encode_call(verb, arguments, options)
        loop = asyncio.get_running_loop()
        self._newest_id = call_id = self._newest_id + 1
        end: asyncio.Future[Any] = loop.create_future()
        expiry = loop.call_later(self._timeout_s, self._expire, call_id)
        self._pending[call_id] = _Pending(verb, end, expiry)
        try:
            await self._send(Call(call_id, body))
            return await end
        except LinkClosed:
            raise _unknown("the link to the primary is gone") from None
        finally:
            expiry.cancel()
            self._pending.pop(call_id, None)
            if end.done() and not end.cancelled():
                end.exception()  # it may have come while it was still being sent: then nobody else asks for it

    def answered(self, answer: Answer) -> None:
        """Take an answer; it is spoken of once its LSN is applied. One that nobody waits for any more is no matter."""
        if answer.lsn > self._applied_lsn:
            heappush(self._ahead, (answer.lsn, answer.call_id, answer))
        else:
            self._tell(answer)

    def applied(self, lsn: int) -> None:
        """Note that everything up to an LSN is applied here, and speak of what waited for it."""
        self._applied_lsn = lsn
        while self._ahead and self._ahead[0][0] <= lsn:
            self._tell(heappop(self._ahead)[2])

    def drop(self, why: Refused) -> None:
        """Refuse every call to come with `why`, and those under way too, saying that their outcome is not known."""
        retry_after_s = why.retry_after_s or RETRY_AFTER_S
        self._dropped = msgspec.structs.replace(Refusal.of(why), retry_after_s=retry_after_s)
        under_way = msgspec.structs.replace(self._dropped, detail=f"{why.detail}; {NOT_KNOWN}")
        self._ahead.clear()
        for pending in self._pending.values():
            _fail(pending.end, under_way.refused())

    def _tell(self, answer: Answer) -> None:
        pending = self._pending.get(answer.call_id)
        if pending is None or pending.end.done():
            return
        if answer.is_refusal:
            pending.end.set_exception(decode_refusal(answer.body))
            return
        try:
            pending.end.set_result(decode_result(pending.verb, answer.body))
        except Refused as refused:
            pending.end.set_exception(refused)

    def _expire(self, call_id: int) -> None:
        within = f"the primary did not answer within {self._timeout_s:g} s"
        _fail(self._pending[call_id].end, _unknown(within))


def _fail(end: "asyncio.Future[Any]", why: Refused) -> None:
    if not end.done():
        end.set_exception(why)
