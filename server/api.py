"""The visitor's HTTP calls, as rows of the route table.

Each handler reads what the caller shows, asks the backend, and renders. Nothing is decided here.
"""

from engine.backend import Backend
from engine.errors import Refused
from engine.receipts import Join
from server.answers import Answer, json_answer, no_content
from server.gate import Gate
from server.mint import Mint
from server.moving import Moving
from server.places import PlaceDesk, bearer_of, holder_of, idempotency_key_of, unproven
from server.routes import Auth, Call, Route
from server.site import SiteApi
from server.updates import Updates
from server.wire import (
    AcceptRequest,
    EventAnswer,
    ExtendRequest,
    HeartbeatRequest,
    JoinRequest,
    PlaceAnswer,
    PositionQuery,
    ReceiptAnswer,
    SessionAnswer,
    TransferAnswer,
    UnprovenPlace,
)

EVENT = "/v1/events/{event_id}"


class VisitorApi:
    """Handlers over a backend; `desk` renders places, `moving` moves them, and `gate` knows the site keys."""

    def __init__(
        self,
        backend: Backend,
        desk: PlaceDesk,
        mint: Mint,
        moving: Moving,
        gate: Gate,
        updates: Updates,
        site: SiteApi,
    ) -> None:
        self._backend = backend
        self._desk = desk
        self._mint = mint
        self._moving = moving
        self._gate = gate
        self._updates = updates
        self._site = site

    async def join(self, call: Call) -> Answer:
        """Join an event's line, or learn the place already held.

        201 with number, position and token when the place is new; 200 when it was held before. Proof of holding
        it is the first join's Idempotency-Key, the enqueue token, the queue token or a site key; without proof the
        answer carries no token. Retrying with the same Idempotency-Key is always safe. A site key or an enqueue token
        takes the place over: older tokens only read from then on.
        """
        request, body = call.request, call.body
        key = idempotency_key_of(request)
        bearer = bearer_of(request)
        trusted = bearer is not None and self._gate.is_site(request, call.event_id)
        place = await self._desk.join(call.event_id, body.user_id, body.enqueue_token, key, trusted=trusted)
        if not place.proven and bearer is not None:
            claims = self._desk.check(bearer, call.event_id)
            if (claims.arrival, claims.user_id) == (place.arrival, place.user_id):
                place = await self._desk.touch(claims)
        if not place.proven:
            return json_answer(unproven(place))
        return json_answer(self._desk.render(place, self._desk.token_for(place)), 201 if place.fresh else 200)

    async def position(self, call: Call) -> Answer:
        """Answer the caller's place, exactly as it is now; asking counts as presence."""
        claims = self._desk.claims(call.request, call.event_id, cookie=True)
        place = await self._desk.touch(claims)
        return json_answer(self._desk.render(place, self._desk.renewed(claims, place), call.query.shown or None))

    async def heartbeat(self, call: Call) -> Answer:
        """Count as present without reading anything new; a hidden tab is given longer patience."""
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        place = await self._desk.touch(claims, visible=call.body.visible)
        if not place.proven:
            raise Refused("read_only", "this place has moved to another device; this token only reads")
        return json_answer(self._desk.render(place, self._desk.renewed(claims, place)))

    async def leave(self, call: Call) -> Answer:
        """Give the place up for good; repeating it is harmless."""
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        await self._backend.leave(call.event_id, holder_of(claims))
        return no_content()

    async def extend(self, call: Call) -> Answer:
        """More time: for a visitor to claim the turn (queue token), or for a session in the booking flow (site key).

        Within claim_max_s of being let in, or session_max_s of the redeem; asking when that is used up changes nothing.
        """
        if self._gate.is_site(call.request, call.event_id):
            return await self._site.extend(call)
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        place = await self._backend.extend_claim(call.event_id, holder_of(claims))
        return json_answer(self._desk.render(place, self._desk.renewed(claims, place)))

    async def transfer(self, call: Call) -> Answer:
        """Make a one-time code that moves the place to another device, for five minutes."""
        claims = self._desk.claims(call.request, call.event_id, cookie=False)
        place = await self._desk.touch(claims)
        return json_answer(self._moving.offer(place))

    async def accept(self, call: Call) -> Answer:
        """Take a place over with the code that another device showed; the token in the answer is its new proof.

        With an Idempotency-Key it is safe to retry.
        """
        key = idempotency_key_of(call.request)
        place = await self._moving.accept(call.event_id, call.body.code, key)
        return json_answer(self._desk.render(place, self._desk.token_for(place)))

    async def receipt(self, call: Call) -> Answer:
        """Answer a signed receipt of the join, to be kept as evidence."""
        place = await self._desk.touch(self._desk.claims(call.request, call.event_id, cookie=True))
        about = (place.event_id, place.user_id, place.arrival, place.number, place.joined_ms, place.version)
        receipt = self._mint.receipts.mint(Join(*about), self._desk.epoch, self._mint.now_s())
        return json_answer(ReceiptAnswer(receipt))

    async def event(self, call: Call) -> Answer:
        """Answer what everybody may know of an event."""
        return json_answer(self._desk.render_event(await self._backend.event(call.event_id)))

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
                problems=(401, 403, 410),
                operation="heartbeat",
            ),
            Route(
                "POST",
                f"{EVENT}/leave",
                self.leave,
                "Leave the line",
                {204: None},
                Auth.QUEUE_TOKEN,
                problems=(401, 403),
                operation="leave",
            ),
            Route(
                "POST",
                f"{EVENT}/extend",
                self.extend,
                "More time to claim a turn, or for a session",
                {200: PlaceAnswer | SessionAnswer},
                Auth.QUEUE_TOKEN,
                body=ExtendRequest,
                problems=(401, 403, 409, 410),
                operation="extend",
            ),
            *self._transferring(),
        ]

    def _transferring(self) -> list[Route]:
        return [
            Route(
                "POST",
                f"{EVENT}/transfer",
                self.transfer,
                "Make a code that moves the place to another device",
                {200: TransferAnswer},
                Auth.QUEUE_TOKEN,
                problems=(401, 403, 409),
            ),
            Route(
                "POST",
                f"{EVENT}/transfer/accept",
                self.accept,
                "Take a place over with a code",
                {200: PlaceAnswer},
                body=AcceptRequest,
                problems=(401, 409, 410),
                headers={"Idempotency-Key": "the new proof of holding the place, and what makes retrying safe"},
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
                problems=(401, 410),
                operation="position",
            ),
            Route(
                "GET",
                f"{EVENT}/receipt",
                self.receipt,
                "Get a signed receipt of the join",
                {200: ReceiptAnswer},
                Auth.QUEUE_TOKEN,
                problems=(401, 410),
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
                upgrade=self._updates.upgrade,
            ),
        ]
