"""The admin API: events and their settings, their states, releases, the log, the server's own health.

Every call shows an admin key and every change is a record with its actor. `reason` is what visitors may read,
and the room asks for it where they deserve one; `note` is for the audit only. In a settings body (PUT, PATCH)
`reason` and `note` are reserved members: they are taken out before the rest is taken for settings.

A POST with an Idempotency-Key happens once (`server.idempotency`: its answer is remembered in this process). What
would do harm twice across a restart, a release, carries its key into the log; the rest is harmless to repeat.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial, wraps
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from aiohttp import hdrs, web

from engine.actor import By
from engine.backend import Backend
from engine.errors import Refused
from engine.records import Record, kind_of
from engine.views import EventView
from server import admin_wire as wire
from server.answers import Answer, json_answer, no_content
from server.idempotency import OnceOnly
from server.places import idempotency_key_of
from server.routes import Auth, Call, Handler, Listener, Route

EVENT = "/v1/admin/events/{event_id}"
NDJSON = "application/x-ndjson"
WRITE_TIMEOUT_S = 30.0
_ETAG = re.compile(r'"([0-9]{1,15})"')
_Json: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["viewer", "operator", "owner"]
Guard: TypeAlias = Callable[[web.BaseRequest], str]
AdminHandler: TypeAlias = Callable[[Call, str], Awaitable[Answer | web.StreamResponse]]


# What a key must be good for at the least, where a row does not say: reading, acting on events, all the rest.
ROLE_OF_METHOD: Mapping[str, Role] = MappingProxyType({"GET": "viewer", "DELETE": "owner"})


class AdminGate(Protocol):
    """Whoever knows the admin keys. Each call returns the name of the key's owner, and raises Refused."""

    def admin(self, request: web.BaseRequest) -> str:
        """Take any admin key."""

    def operator(self, request: web.BaseRequest) -> str:
        """Take a key of role operator or owner."""

    def owner(self, request: web.BaseRequest) -> str:
        """Take a key of role owner."""


class AdminApi:
    """The handlers. `clock` is monotonic, in seconds; `warnings` say what is set weaker than the safe defaults."""

    def __init__(
        self, backend: Backend, gate: AdminGate, clock: Callable[[], float], warnings: Sequence[str] = ()
    ) -> None:
        self._backend = backend
        self._guards = {"viewer": gate.admin, "operator": gate.operator, "owner": gate.owner}
        self._once = OnceOnly(clock)
        self._warnings = list(warnings)

    def routes(self) -> list[Route]:
        """Return the rows of the admin API."""
        return [*self._event_routes(), *self._action_routes(), *self._reading_routes()]

    def _event_routes(self) -> list[Route]:
        row, event = self.row, {200: wire.AdminEvent}
        changing: dict[str, Any] = {
            "body": _Json,
            "body_schema": wire.SettingsChange,
            "body_limit": wire.SETTINGS_BODY_LIMIT,
            "problems": (409, 412, 422),
            "headers": _IF_MATCH,
        }
        return [
            row("GET", "/v1/admin/events", self.list_events, "All events", {200: wire.AdminEvents}),
            row("GET", EVENT, self.show_event, "One event", event),
            row("PUT", EVENT, self.put_event, "Create an event or replace all its settings", _CREATED, **changing),
            row("PATCH", EVENT, self.patch_event, "Change some settings of an event", event, **changing),
            row(
                "DELETE",
                EVENT,
                self.delete_event,
                "Delete an event and everybody's place in it",
                {204: None},
                query=wire.DeleteQuery,
                problems=(409, 412),
                headers=_IF_MATCH,
            ),
        ]

    def _action_routes(self) -> list[Route]:
        def post(path: str, handler: AdminHandler, summary: str, body: Any, answer: Any = wire.AdminEvent) -> Route:
            return self.row("POST", path, handler, summary, {200: answer}, body=body, problems=(409,), headers=ONCE)

        pausing, closing = wire.PauseRequest, wire.CloseRequest
        return [
            post(f"{EVENT}/lobby", self.open_lobby, "Open the lobby and bind its draw", wire.LobbyRequest),
            post(f"{EVENT}/open", self.open_event, "Open an event, or open it again", wire.OpenRequest),
            post(f"{EVENT}/pause", self.pause_event, "Pause releases; visitors read the reason", pausing),
            post(f"{EVENT}/resume", self.resume_event, "Go on after a pause", wire.ResumeRequest),
            post(f"{EVENT}/close", self.close_event, "Close an event; visitors read the reason", closing),
            post(
                f"{EVENT}/release",
                self.release,
                "Release the next in line now, outside the rate and inside the cap",
                wire.ReleaseRequest,
                wire.ReleaseAnswer,
            ),
            post(f"{EVENT}/message", self.tell, "Set the message to everybody in line", wire.MessageRequest),
            self.row(
                "POST",
                "/v1/admin/snapshot",
                self.snapshot,
                "Write a snapshot",
                {200: wire.SnapshotAnswer},
                role="owner",
                body=wire.SnapshotRequest,
                problems=(409,),
                headers=ONCE,
            ),
        ]

    def _reading_routes(self) -> list[Route]:
        return [
            self.row("GET", f"{EVENT}/stats", self.stats, "The counts of an event", {200: wire.StatsAnswer}),
            self.row(
                "GET",
                f"{EVENT}/records",
                self.records,
                "The records of an event as they stand in the log, without proofs, one JSON object a line",
                {200: wire.RecordLine},
                query=wire.RecordsQuery,
                content_type=NDJSON,
            ),
            self.row("GET", "/v1/admin/status", self.status, "How the server fares", {200: wire.StatusAnswer}),
        ]

    def row(
        self,
        method: str,
        path: str,
        handler: AdminHandler,
        summary: str,
        answers: Mapping[int, Any],
        *,
        role: Role | None = None,
        problems: tuple[int, ...] = (),
        **more: Any,
    ) -> Route:
        """Return a row that asks for an admin key of a role, by the method where it says none."""
        needed = role or ROLE_OF_METHOD.get(method, "operator")
        guard = self._guards[needed]
        return Route(
            method,
            path,
            self._behind_gate(handler, guard, once=method == "POST"),
            summary,
            answers,
            auth=Auth.ADMIN_KEY,
            guard=guard,
            listener=Listener.ADMIN,
            problems=problems if needed == "viewer" else (*problems, 403),
            tag="admin",
            operation="" if "content_type" in more else handler.__name__,
            **more,
        )

    def _behind_gate(self, handler: AdminHandler, guard: Guard, *, once: bool) -> Handler:
        """Return a handler that asks for the admin key first, and runs at most once where a key says so."""

        @wraps(handler)
        async def guarded(call: Call) -> Answer | web.StreamResponse:
            actor = guard(call.request)
            key = idempotency_key_of(call.request) if once else None
            if key is None:
                return await handler(call, actor)
            return await self._once.run(actor, key, _fingerprint(call), partial(_answer_of, handler, call, actor))

        return guarded

    # ---- events -------------------------------------------------------------------------------------

    async def list_events(self, call: Call, actor: str) -> Answer:
        """Answer all events, by id, with their settings."""
        events = [_event(view) for view in await self._backend.events()]
        return json_answer(wire.AdminEvents(events))

    async def show_event(self, call: Call, actor: str) -> Answer:
        """Answer one event; its ETag is the revision of its settings."""
        return _event_answer(await self._backend.event(call.event_id))

    async def put_event(self, call: Call, actor: str) -> Answer:
        """Create an event as a draft, or replace all its settings; what is left out is at its default."""
        return await self._configure(call, actor, replace=True)

    async def patch_event(self, call: Call, actor: str) -> Answer:
        """Merge settings into those of an event. Lowering the rate or moving the opening needs a `reason`."""
        return await self._configure(call, actor, replace=False)

    async def _configure(self, call: Call, actor: str, *, replace: bool) -> Answer:
        changes, why = _split(call.body)
        revision = await self._expected_revision(call)
        by = By(actor, why.reason, why.note)
        view, created = await self._backend.configure(call.event_id, changes, by, replace=replace, revision=revision)
        return _event_answer(view, 201 if created else 200)

    async def delete_event(self, call: Call, actor: str) -> Answer:
        """Delete a draft, or a closed event that nobody released is inside of any more."""
        revision = await self._expected_revision(call)
        await self._backend.delete(call.event_id, By(actor, None, call.query.note or None), revision)
        return no_content()

    async def _expected_revision(self, call: Call) -> int | None:
        """Return the revision If-Match asks for, None when it asks for none (RFC 9110, strong comparison)."""
        condition = call.request.headers.get(hdrs.IF_MATCH)
        if condition is None:
            return None
        if condition.strip() != "*":
            match = _ETAG.fullmatch(condition.strip())
            if match is None:
                detail = "If-Match takes one ETag as it was answered, or *"
                raise Refused("bad_request", detail, field="If-Match")
            return int(match.group(1))
        try:
            return (await self._backend.event(call.event_id)).revision
        except Refused as refused:
            raise Refused("precondition_failed", refused.detail) from None

    # ---- actions ------------------------------------------------------------------------------------

    async def open_lobby(self, call: Call, actor: str) -> Answer:
        """Let people gather; who comes before the opening has the same chance. The answer's draw is the commitment."""
        return await self._control(call, "lobby", By(actor, None, call.body.note), beacon=call.body.beacon)

    async def open_event(self, call: Call, actor: str) -> Answer:
        """Open a draft, draw a lobby, or open a closed event again with everybody back in place."""
        beacon = call.body.beacon
        if beacon is not None:
            draw = (await self._backend.event(call.event_id)).draw
            if draw is None or draw.beacon is None:
                raise Refused(
                    "conflict", "no beacon was named when the lobby opened", reason="no_beacon", field="beacon"
                )
        return await self._control(call, "open", By(actor, None, call.body.note), beacon=beacon)

    async def pause_event(self, call: Call, actor: str) -> Answer:
        """Stop releases and all windows; joins are still taken."""
        return await self._control(call, "pause", By(actor, call.body.reason, call.body.note))

    async def resume_event(self, call: Call, actor: str) -> Answer:
        """Go on: every window lasts as much longer as the pause was."""
        return await self._control(call, "resume", By(actor, None, call.body.note))

    async def close_event(self, call: Call, actor: str) -> Answer:
        """End an event; passes that are out stay good until they run out."""
        return await self._control(call, "close", By(actor, call.body.reason, call.body.note), call.body.outcome)

    async def _control(
        self, call: Call, action: str, by: By, outcome: str | None = None, beacon: str | None = None
    ) -> Answer:
        return _event_answer(await self._backend.control(call.event_id, action, by, outcome, beacon))

    async def release(self, call: Call, actor: str) -> Answer:
        """Release the next `count` in line; the answer says what kept it below that."""
        body = call.body
        by = By(actor, body.reason, body.note, idempotency_key_of(call.request))
        result = await self._backend.release(call.event_id, body.count, by)
        about = (result.released, result.stepped_over, result.limited_by, result.version)
        return json_answer(wire.ReleaseAnswer(*about))  # type: ignore[arg-type]

    async def tell(self, call: Call, actor: str) -> Answer:
        """Set what everybody in line reads; an empty text takes it away."""
        by = By(actor, None, call.body.note)
        return _event_answer(await self._backend.tell(call.event_id, call.body.text, by))

    async def snapshot(self, call: Call, actor: str) -> Answer:
        """Write a snapshot now; the answer comes when it is verified."""
        return json_answer(wire.SnapshotAnswer(dict(await self._backend.snapshot())))

    # ---- reading ------------------------------------------------------------------------------------

    async def stats(self, call: Call, actor: str) -> Answer:
        """Answer the counts of one event by status, and its pace."""
        return json_answer(wire.StatsAnswer(**(await self._backend.stats(call.event_id))._asdict()))

    async def status(self, call: Call, actor: str) -> Answer:
        """Answer epoch, LSNs, what is refused, and the numbers of log and snapshots."""
        status = self._backend.status()
        answer = wire.StatusAnswer(
            status.name,
            status.role,
            status.epoch,
            status.version,
            status.durable_version,
            list(status.degraded),
            status.refuses_joins,
            self._warnings,
            dict(status.details),
        )
        return json_answer(answer)

    async def records(self, call: Call, actor: str) -> web.StreamResponse | Answer:
        """Stream the log from `from` to `to`, or to what is durable as the call comes in."""
        if not self._backend.capabilities.records:
            raise Refused("not_found", "this backend keeps no records that could be read here")
        await self._backend.event(call.event_id)
        durable = self._backend.status().durable_version
        last = min(durable, call.query.to_lsn or durable)
        lines = self._lines(call.event_id, call.query.from_lsn, last)
        async with aclosing(lines):
            first = await anext(lines, b"")
            response = web.StreamResponse(headers=_STREAM)
            await response.prepare(call.request)
            if call.request.method != "HEAD":
                await _stream(call.request, response, first, lines)
            await response.write_eof()
        return response

    async def _lines(self, event_id: str, first_lsn: int, last_lsn: int) -> AsyncGenerator[bytes, None]:
        """Yield blocks of lines; a block is what one read of the log brought."""
        if first_lsn > last_lsn:
            return
        async for batch in self._backend.records(first_lsn):
            yield b"".join(_line(lsn, record) for lsn, record in batch if lsn <= last_lsn and _is_of(record, event_id))
            if not batch or batch[-1][0] >= last_lsn:
                return


async def _answer_of(handler: AdminHandler, call: Call, actor: str) -> Answer:
    answer = await handler(call, actor)
    assert isinstance(answer, Answer), "what streams cannot be remembered"
    return answer


_STREAM = {
    hdrs.CONTENT_TYPE: NDJSON,
    hdrs.CACHE_CONTROL: "no-store",
    "X-Content-Type-Options": "nosniff",
    hdrs.SERVER: "Stanchion",
}
_IF_MATCH = {"If-Match": "the ETag of the settings to change, or *; 412 when they were changed meanwhile"}
ONCE = {"Idempotency-Key": "a repeated call with the same key gets the same answer and happens once"}
_CREATED = {200: wire.AdminEvent, 201: wire.AdminEvent}


def _event(view: EventView) -> wire.AdminEvent:
    draw = None if view.draw is None else wire.AdminDraw(*view.draw)
    return wire.AdminEvent(**(view._asdict() | {"draw": draw}))


def _event_answer(view: EventView, status: int = 200) -> Answer:
    return json_answer(_event(view), status).with_headers(("ETag", f'"{view.revision}"'))


def _split(body: Mapping[str, object]) -> tuple[dict[str, object], wire.Why]:
    """Return the settings of a body and its reserved members."""
    said = {name: body[name] for name in ("reason", "note") if name in body}
    try:
        why = msgspec.convert(said, wire.Why)
    except msgspec.ValidationError as error:
        raise Refused("bad_request", str(error), field=str(error).rpartition("$.")[2].rstrip("`")) from None
    return {name: value for name, value in body.items() if name not in said}, why


def _fingerprint(call: Call) -> bytes:
    """Return a digest of what was asked: method, address and body."""
    head = f"{call.request.method} {call.request.raw_path}\n".encode("utf-8", "surrogateescape")
    return blake2b(head + msgspec.json.encode(call.body), digest_size=16).digest()


def _is_of(record: Record, event_id: str) -> bool:
    return getattr(record, "event_id", event_id) == event_id


def _line(lsn: int, record: Record) -> bytes:
    """Return a record as a line of the export, without what proves holding a place.

    A digest of 64 bits stands alone in the log, but a million of them side by side are within reach of a guesser.
    """
    facts = {name: value for name, value in record._asdict().items() if name != "proof"}
    return msgspec.json.encode({"lsn": lsn, "kind": kind_of(record), **facts}) + b"\n"


async def _stream(
    request: web.BaseRequest, response: web.StreamResponse, first: bytes, rest: AsyncGenerator[bytes, None]
) -> None:
    """Write blocks; when that cannot go on, break off, so that a part is never taken for the whole.

    A reader that takes nothing for WRITE_TIMEOUT_S is let go.
    """
    try:
        await _write(response, first)
        async for block in rest:
            await _write(response, block)
    except Exception as error:
        if request.transport is not None:
            request.transport.abort()
        if isinstance(error, Refused | TimeoutError):
            raise ConnectionResetError("the export was broken off") from error
        raise


async def _write(response: web.StreamResponse, block: bytes) -> None:
    if block:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await response.write(block)
