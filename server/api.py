"""The visitor's and the site's HTTP calls (API.md), as rows of the route table.

Each handler reads what the caller shows, asks the backend, and renders. Nothing is decided here.
"""

from engine.backend import Backend
from server.answers import Answer, json_answer, no_content
from server.gate import Gate
from server.places import PlaceDesk, bearer_of, idempotency_key_of, unproven
from server.routes import Auth, Call, Route
from server.updates import Updates
from server.wire import (
    CompletedAnswer,
    CompleteRequest,
    EventAnswer,
    HeartbeatRequest,
    JoinRequest,
    PlaceAnswer,
    PositionQuery,
    UnprovenPlace,
)

EVENT = "/v1/events/{event_id}"


class VisitorApi:
    """Handlers over a backend; `desk` renders places and `gate` knows the site keys."""

    def __init__(self, backend: Backend, desk: PlaceDesk, gate: Gate, updates: Updates) -> None:
        self._backend = backend
        self._desk = desk
        self._gate = gate
        self._updates = updates

    async def join(self, call: Call) -> Answer:
        """Join an event's line, or learn the place already held.

        201 with number, position and token when the place is new; 200 when it was held before. Proof of holding
        it is the first join's Idempotency-Key, the queue token or a site key; without proof the answer carries
        no token. Retrying with the same Idempotency-Key is always safe.
        """
        request, body = call.request, call.body
        key = idempotency_key_of(request)
        bearer = bearer_of(request)
        trusted = bearer is not None and self._gate.is_site(request, call.event_id)
        place = await self._desk.join(call.event_id, body.user_id, body.enqueue_token, key, trusted=trusted)
        if not place.proven and bearer is not None:
            claims = self._desk.check(bearer, call.event_id)
            if (claims.arrival, claims.user_id) == (place.arrival, place.user_id):
                place = place._replace(proven=True)
        if not place.proven:
            return json_answer(unproven(place))
        return json_answer(self._desk.render(place, self._desk.mint(place)), 201 if place.fresh else 200)

    async def position(self, call: Call) -> Answer:
        """Answer the caller's place, exactly as it is now; asking counts as presence."""
        claims = self._desk.claims(call.request, call.event_id, cookie=True)
        place = await self._backend.touch(call.event_id, claims.arrival, claims.user_id)
        return json_answer(self._desk.render(place, self._desk.renewed(claims, place), call.query.shown or None))

    async def heartbeat(self, call: Call) -> Answer:
        """Count as present without reading anything new."""
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        place = await self._backend.touch(call.event_id, claims.arrival, claims.user_id, visible=call.body.visible)
        return json_answer(self._desk.render(place, self._desk.renewed(claims, place)))

    async def leave(self, call: Call) -> Answer:
        """Give the place up for good; repeating it is harmless."""
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        await self._backend.leave(call.event_id, claims.arrival, claims.user_id)
        return no_content()

    async def event(self, call: Call) -> Answer:
        """Answer what everybody may know of an event."""
        return json_answer(self._desk.render_event(await self._backend.event(call.event_id)))

    async def complete(self, call: Call) -> Answer:
        """End a released visitor's stay in the booking flow; frees the slot at once; repeating it is harmless."""
        actor = self._gate.site(call.request, call.event_id)
        place = await self._backend.complete(call.event_id, call.body.user_id, call.body.outcome, actor)
        return json_answer(CompletedAnswer(place.user_id, place.number, place.status, place.version))  # type: ignore[arg-type]

    def routes(self) -> list[Route]:
        """Return the rows of the visitor and site API."""
        return [*self._changing(), *self._reading()]

    def _changing(self) -> list[Route]:
        join_headers = {"Idempotency-Key": "proof of holding the place, and what makes retrying safe"}
        return [
            Route(
                "POST",
                f"{EVENT}/join",
                self.join,
                "Join the line",
                {201: PlaceAnswer, 200: PlaceAnswer | UnprovenPlace},
                body=JoinRequest,
                problems=(401, 403, 409, 410, 503),
                headers=join_headers,
                operation="join",
            ),
            Route(
                "POST",
                f"{EVENT}/heartbeat",
                self.heartbeat,
                "Be present without reading",
                {200: PlaceAnswer},
                Auth.QUEUE_TOKEN,
                body=HeartbeatRequest,
                problems=(401,),
                operation="heartbeat",
            ),
            Route(
                "POST",
                f"{EVENT}/leave",
                self.leave,
                "Leave the line",
                {204: None},
                Auth.QUEUE_TOKEN,
                problems=(401,),
                operation="leave",
            ),
            Route(
                "POST",
                f"{EVENT}/complete",
                self.complete,
                "End a stay in the booking flow",
                {200: CompletedAnswer},
                Auth.SITE_KEY,
                guard=self._gate.site,
                body=CompleteRequest,
                problems=(401, 409),
                tag="site",
                operation="complete",
            ),
        ]

    def _reading(self) -> list[Route]:
        return [
            Route("GET", EVENT, self.event, "Read an event", {200: EventAnswer}),
            Route(
                "GET",
                f"{EVENT}/position",
                self.position,
                "Read one's place",
                {200: PlaceAnswer},
                Auth.QUEUE_TOKEN,
                query=PositionQuery,
                problems=(401,),
                operation="position",
            ),
            Route(
                "GET",
                f"{EVENT}/updates",
                self._updates.serve,
                "Be told of changes (WebSocket or SSE)",
                {200: str, 101: None},
                Auth.QUEUE_TOKEN,
                problems=(401, 403),
                content_type="text/event-stream",
            ),
        ]
