"""From a place in the engine to a place on the wire, and from what a client shows to the place it holds.

Shared by HTTP, WebSocket and SSE, so that all three say the same.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Awaitable
from hashlib import blake2b
from secrets import token_urlsafe
from urllib.parse import quote, urlencode, urlsplit

from aiohttp import hdrs, web
from multidict import istr

from engine.actor import Entrant, Holder
from engine.backend import Backend
from engine.errors import Refused
from engine.identities import is_identity
from engine.tokens import LONGEST_TOKEN, QueueToken, proof_of
from engine.views import DrawView, Estimate, EventView, Place
from server.browsers import cookie_of
from server.mint import Mint
from server.wire import BeaconAnswer, DrawAnswer, EstimateAnswer, EventAnswer, PlaceAnswer, UnprovenPlace

FASTEST_POLL_S = 2
SLOWEST_POLL_S = 20
IDEMPOTENCY_HEADER = istr("Idempotency-Key")
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,200}")


def check_user_id(user_id: str) -> str:
    """Return a user_id that may be stored and shown; raises Refused("bad_request")."""
    if is_identity(user_id):
        return user_id
    raise Refused("bad_request", "user_id: 1 to 128 bytes of UTF-8 without control characters", field="user_id")


def user_id_for(event_id: str, idempotency_key: str | None) -> str:
    """Return an unguessable user_id; the same one for the same Idempotency-Key, so that retrying is safe."""
    if idempotency_key is None:
        return token_urlsafe(16)
    digest = blake2b(f"{event_id}\n{idempotency_key}".encode(), digest_size=16, person=b"stanchion user").digest()
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def idempotency_key_of(request: web.BaseRequest) -> str | None:
    """Return the request's Idempotency-Key; raises Refused when it is not 1–200 visible ASCII characters."""
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        detail = "Idempotency-Key: 1 to 200 visible ASCII characters"
        raise Refused("bad_request", detail, field=str(IDEMPOTENCY_HEADER))
    return key


def bearer_of(request: web.BaseRequest) -> str | None:
    """Return the bearer token of a request, None when it carries no Authorization."""
    authorization = request.headers.get(hdrs.AUTHORIZATION)
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused("bad_token", "Authorization must be a bearer token")
    return token


def holder_of(claims: QueueToken) -> Holder:
    """Return whom a queue token stands for."""
    return Holder(claims.arrival, claims.user_id, claims.generation)


class PlaceDesk:
    """Takes queue tokens and renders places. Times are Unix time of the mint's clock."""

    def __init__(self, backend: Backend, mint: Mint) -> None:
        self._backend = backend
        self._mint = mint

    @property
    def epoch(self) -> int:
        """The backend's, now: it changes when another process takes over."""
        return self._backend.epoch

    # ---- who it is --------------------------------------------------------------------------------

    def join(
        self, event_id: str, user_id: str | None, enqueue_token: str | None, key: str | None, *, trusted: bool = False
    ) -> Awaitable[Place]:
        """Join on somebody's behalf; site keys (`trusted`) and enqueue tokens take over a place that is held."""
        if enqueue_token is not None:
            return self._backend.join(event_id, self._signed(event_id, user_id, enqueue_token))
        user_id = user_id_for(event_id, key) if user_id is None else check_user_id(user_id)
        proof = 0 if key is None else proof_of(key)
        return self._backend.join(event_id, Entrant(user_id, proof, 0, 1, "site" if trusted else "visitor"))

    def _signed(self, event_id: str, user_id: str | None, enqueue_token: str) -> Entrant:
        """Return who an enqueue token says it is."""
        said = self._mint.enqueue.check(enqueue_token, event_id, self._mint.now_s())
        if user_id not in (None, said.sub):
            raise Refused("bad_request", "user_id: the enqueue token is somebody else's", field="user_id")
        return Entrant(said.identity, proof_of(f"enqueue {said.jti}"), said.priority, said.size, "enqueue")

    def claims(self, request: web.BaseRequest, event_id: str, *, cookie: bool) -> QueueToken:
        """Return the claims of the token a request carries, as bearer or (GETs only) as the page's cookie."""
        token = bearer_of(request)
        if token is None and cookie and hdrs.COOKIE in request.headers:
            token = cookie_of(request, f"stanchion-{event_id}")
        if token is None:
            raise Refused("bad_token", "a queue token is required: Authorization: Bearer …")
        return self.check(token, event_id)

    def check(self, token: str, event_id: str) -> QueueToken:
        """Return the claims of a token; raises Refused("bad_token")."""
        if len(token) > LONGEST_TOKEN:
            raise Refused("bad_token", "the token is too long")
        return self._mint.queue.check(token, event_id, self.epoch, self._mint.now_s())

    def touch(self, claims: QueueToken, *, visible: bool = True) -> Awaitable[Place]:
        """Answer the place a token stands for and note its holder's presence.

        A place that is not there, of an epoch whose end may have been lost, is taken up again on the token's word.
        """
        if claims.epoch >= self.epoch:
            return self._backend.touch(claims.event_id, holder_of(claims), visible=visible)
        return self._touch_or_readmit(claims, visible)

    async def _touch_or_readmit(self, claims: QueueToken, visible: bool) -> Place:
        holder = holder_of(claims)
        try:
            return await self._backend.touch(claims.event_id, holder, visible=visible)
        except Refused as refused:
            if refused.code != "not_found":
                raise
        return await self._backend.readmit(claims.event_id, holder, claims.epoch, claims.issued_s * 1000)

    def token_for(self, place: Place) -> str:
        """Return a queue token for a place's holder."""
        number, now_s = place.number or 0, self._mint.now_s()
        return self._mint.queue.mint(
            place.event_id, place.user_id, place.arrival, number, place.generation, self.epoch, now_s
        )

    def renewed(self, claims: QueueToken, place: Place) -> str | None:
        """Return a fresh token for the holder: past half its life, from before a rotation, or without its number."""
        if not place.proven:
            return None
        is_old = claims.past_half_life(self._mint.now_s()) or self._mint.is_of_an_old_key(claims.issued_s)
        return self.token_for(place) if is_old or claims.number != (place.number or 0) else None

    # ---- what it looks like -----------------------------------------------------------------------

    def render(self, place: Place, token: str | None, shown: int | None = None) -> PlaceAnswer:
        """Return the wire form of a place; a position is never above what this visitor was shown.

        Who is let in is handed a pass, minted now: as often as they ask, it is the same admission.
        """
        position = place.position
        if position is not None and shown is not None and shown < position:
            position = shown
        estimate, now_ms = place.estimate, self._mint.now_ms()
        is_let_in = place.status == "ready" and place.proven and place.window_ms is not None
        pass_, expires_ms, enter_url = self._pass(place, now_ms) if is_let_in else (None, None, None)
        return PlaceAnswer(
            place.event_id,
            place.user_id,
            place.status,  # type: ignore[arg-type]
            place.cause,
            place.arrival,
            place.number,
            position,
            None if position is None else position - 1,
            place.waiting,
            None if estimate is None else estimate.seconds,
            None if estimate is None else _band(estimate),
            progress_of(place, position),
            token,
            pass_,
            expires_ms,
            enter_url,
            poll_after_s(estimate.seconds if estimate else 0, place.presence_timeout_s),
            place.message,
            now_ms,
            self.epoch,
            place.version,
            self._backend.is_stale,
        )

    def _pass(self, place: Place, now_ms: int) -> tuple[str, int, str | None]:
        """Return the pass of somebody ready, until when to use it, and the address that takes it to the shop."""
        assert place.number is not None and place.window_ms is not None, "who is ready has a number and a window"
        expires_ms = now_ms + place.window_ms
        who = (place.event_id, place.user_id, place.number, place.release)
        pass_ = self._mint.passes.mint(*who, self.epoch, now_ms // 1000, -(-expires_ms // 1000))
        return pass_, expires_ms, enter_url_of(place.event_id, pass_, place.return_to)

    def render_event(self, view: EventView) -> EventAnswer:
        """Return the public form of an event."""
        settings = view.settings
        return EventAnswer(
            view.event_id,
            view.name,
            view.state,  # type: ignore[arg-type]
            view.reason,
            self._mint.now_ms(),
            settings["lobby_opens_at_ms"],  # type: ignore[arg-type]
            settings["opens_at_ms"],  # type: ignore[arg-type]
            settings["closes_at_ms"],  # type: ignore[arg-type]
            view.waiting,
            view.serving_number,
            round(view.rate_per_minute, 2),
            view.message,
            view.outcome,
            None if view.draw is None else render_draw(view, view.draw),
        )


def render_draw(view: EventView, draw: DrawView) -> DrawAnswer:
    """Return the public form of a draw."""
    beacon = None if draw.beacon is None else BeaconAnswer(draw.beacon, draw.beacon_value)
    return DrawAnswer(
        view.event_id,
        view.state,  # type: ignore[arg-type]
        draw.draw_id,
        draw.algorithm,
        draw.commitment,
        beacon,
        draw.seed,
        draw.count,
        draw.entries_sha256,
    )


def enter_url_of(event_id: str, pass_: str, return_to: str | None) -> str | None:
    """Return the address on the shop's own origin that redeems a pass, None where no address to return to is set."""
    if return_to is None:
        return None
    parts = urlsplit(return_to)
    query = urlencode({"event": event_id, "pass": pass_, "to": return_to}, quote_via=quote)
    return f"{parts.scheme}://{parts.netloc}/.stanchion/enter?{query}"


def _band(estimate: Estimate) -> EstimateAnswer:
    return EstimateAnswer(estimate.low_seconds, estimate.high_seconds, estimate.confidence, estimate.reason)


def progress_of(place: Place, position: int | None) -> float:
    """Return how much of the way is behind this visitor, 0 to 1, to four digits."""
    if position is None:
        return 0.0 if place.status == "lobby" else 1.0
    way = place.number or 1
    if way < position:
        way = position
    return int((way - position + 1) / way * 10_000 + 0.5) / 10_000


def unproven(place: Place) -> UnprovenPlace:
    """Return what somebody who only knows an id may see."""
    return UnprovenPlace(place.event_id, place.status, place.number, place.position)  # type: ignore[arg-type]


def poll_after_s(wait_s: int, presence_timeout_s: int) -> int:
    """Return when to ask again: a twentieth of the wait, 2–20 s, at most a third of the presence timeout."""
    longest_s = presence_timeout_s // 3
    if longest_s > SLOWEST_POLL_S:
        longest_s = SLOWEST_POLL_S
    after_s = wait_s // 20
    if after_s > longest_s:
        after_s = longest_s
    return FASTEST_POLL_S if after_s < FASTEST_POLL_S else after_s
