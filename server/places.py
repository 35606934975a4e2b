"""From a place in the engine to a place on the wire, and from what a client shows to the place it holds.

Shared by HTTP, WebSocket and SSE, so that all three say the same.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import blake2b
from secrets import token_urlsafe

from aiohttp import hdrs, web
from multidict import istr

from engine.backend import Backend
from engine.errors import Refused
from engine.identities import is_identity
from engine.tokens import LONGEST_TOKEN, QueueToken, QueueTokens, proof_of
from engine.views import EventView, Place
from server.key_ring import KeyRing
from server.wire import EstimateAnswer, EventAnswer, PlaceAnswer, UnprovenPlace

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


class PlaceDesk:
    """Mints and checks queue tokens and renders places. `wall_ms` is Unix time; `epoch` that of the backend.

    Tokens are those of the ring's keys, and when the keys change, so do they.
    """

    def __init__(self, backend: Backend, ring: KeyRing, wall_ms: Callable[[], int]) -> None:
        self._backend = backend
        self._ring = ring
        self._wall_ms = wall_ms
        self._take_keys()
        ring.on_change(self._take_keys)
        self.epoch = backend.status().epoch

    def _take_keys(self) -> None:
        secrets, signing = self._ring.secrets("queue")
        self._tokens = QueueTokens(secrets, signing)
        self._rotated_s = self._ring.signing("queue").signs_from_ms // 1000 if len(secrets) > 1 else None

    async def join(
        self, event_id: str, user_id: str | None, enqueue_token: str | None, key: str | None, *, trusted: bool = False
    ) -> Place:
        """Join on somebody's behalf; `trusted` callers (site keys) prove holding any place."""
        if enqueue_token is not None:
            raise Refused("bad_enqueue_token", "no key of kind enqueue is registered with this server")
        user_id = user_id_for(event_id, key) if user_id is None else check_user_id(user_id)
        place = await self._backend.join(event_id, user_id, 0 if key is None else proof_of(key))
        return place._replace(proven=True) if trusted and not place.proven else place

    def claims(self, request: web.BaseRequest, event_id: str, *, cookie: bool) -> QueueToken:
        """Return the claims of the token a request carries, as bearer or (GETs only) as the page's cookie."""
        token = bearer_of(request)
        if token is None and cookie and hdrs.COOKIE in request.headers:
            name = f"stanchion-{event_id}"
            token = request.cookies.get(f"__Host-{name}") or request.cookies.get(name)
        if token is None:
            raise Refused("bad_token", "a queue token is required: Authorization: Bearer …")
        return self.check(token, event_id)

    def check(self, token: str, event_id: str) -> QueueToken:
        """Return the claims of a token; raises Refused("bad_token")."""
        if len(token) > LONGEST_TOKEN:
            raise Refused("bad_token", "the token is too long")
        return self._tokens.check(token, event_id, self.epoch, self._wall_ms() // 1000)

    def mint(self, place: Place) -> str:
        """Return a token for a place."""
        now_s = self._wall_ms() // 1000
        return self._tokens.mint(place.event_id, place.user_id, place.arrival, place.number, 0, self.epoch, now_s)

    def renewed(self, claims: QueueToken, place: Place) -> str | None:
        """Return a fresh token when the old one is past half its life, or from before a rotation still under way."""
        is_old = self._rotated_s is not None and claims.issued_s <= self._rotated_s
        return self.mint(place) if is_old or claims.past_half_life(self._wall_ms() // 1000) else None

    def render(self, place: Place, token: str | None, shown: int | None = None) -> PlaceAnswer:
        """Return the wire form of a place; a position is never above what this visitor was shown."""
        position = place.position
        if position is not None and shown is not None and shown < position:
            position = shown
        estimate = place.estimate
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
            estimate and estimate.seconds,
            estimate and EstimateAnswer(estimate[1], estimate[2], estimate[3], estimate[4]),
            1.0 if position is None else round(1 - (position - 1) / max(place.number, position), 4),
            token,
            None,
            None,
            None,
            poll_after_s(estimate.seconds if estimate else 0, place.presence_timeout_s),
            place.message,
            self._wall_ms(),
            self.epoch,
            place.version,
            False,
        )

    def render_event(self, view: EventView) -> EventAnswer:
        """Return the public form of an event."""
        settings = view.settings
        return EventAnswer(
            view.event_id,
            view.name,
            view.state,  # type: ignore[arg-type]
            view.reason,
            self._wall_ms(),
            settings["lobby_opens_at_ms"],  # type: ignore[arg-type]
            settings["opens_at_ms"],  # type: ignore[arg-type]
            settings["closes_at_ms"],  # type: ignore[arg-type]
            view.waiting,
            view.serving_number,
            round(view.rate_per_minute, 2),
            view.message,
            view.outcome,
            None,
        )


def unproven(place: Place) -> UnprovenPlace:
    """Return what somebody who only knows an id may see."""
    return UnprovenPlace(place.event_id, place.status, place.number, place.position)  # type: ignore[arg-type]


def poll_after_s(wait_s: int, presence_timeout_s: int) -> int:
    """Return when to ask again: a twentieth of the wait, 2–20 s, at most a third of the presence timeout."""
    return max(FASTEST_POLL_S, min(SLOWEST_POLL_S, presence_timeout_s // 3, wait_s // 20))
