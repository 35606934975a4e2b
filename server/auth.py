"""Forward-auth: the question a proxy in front of the shop asks before every request, `may this browser come in?`

Yes is a 204 with who it is; everything else is a denial, so a proxy that lets only 2xx through fails closed. What is
asked is the room, each time: a session token says whose session it is, never that it still runs. So a visitor who was
removed is out at once, one who has completed still sees the confirmation page, and neither a pause nor an outage
shortens anybody's session. Asking costs no write, except when a session that is used gets extended.

The browser's original address comes in the proxy's headers, or as the rest of the path. It only ever decides where a
denied browser may come back to, so whoever makes it up harms nobody.
"""

from urllib.parse import quote

from aiohttp import web
from multidict import istr

from engine.actor import Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.views import Session
from server.answers import TEXT, Answer, problem_answer
from server.browsers import FORWARDED_PROTO, first_of, host_of, navigates
from server.mint import Mint
from server.return_to import allowed, waiting_page
from server.routes import ANY, Call, Route
from server.session_cookies import SessionDesk

AUTH = "/v1/auth/{event_id}"
ACTOR = "auth"
ORIGINAL_URI = istr("X-Original-URI")
FORWARDED_URI = istr("X-Forwarded-Uri")
ORIGINAL_METHOD = istr("X-Original-Method")
FORWARDED_METHOD = istr("X-Forwarded-Method")
DENY_PLAINLY = "deny=401"


class ForwardAuth:
    """The handler. `url` is where visitors reach this server, "" where the front routes /w/ here."""

    def __init__(self, backend: Backend, mint: Mint, desk: SessionDesk, url: str = "") -> None:
        self._backend = backend
        self._mint = mint
        self._desk = desk
        self._url = url
        self._extending: set[tuple[str, int]] = set()

    async def auth(self, call: Call) -> Answer:
        """Answer a proxy whether a browser may come in: 204, or a denial that names the waiting page.

        The same for any method, here and at any address below. The cookie `__Host-stanchion-session-{event_id}`
        shows the session; the original address is that of `X-Original-URI` or `X-Forwarded-Uri` with
        `X-Forwarded-Proto` and `X-Forwarded-Host`, or the rest of the path. A 204 carries `Stanchion-User` (percent-
        encoded), `Stanchion-Number` and `Stanchion-Session-Expires` (Unix milliseconds). A browser that navigates is
        answered 302 to the waiting page; everybody else, and with `?deny=401` anybody, 401 with the same `Location`.
        A session with less than half of its time left is extended where `session_extend` allows it.
        """
        session = await self._desk.session(call.request, call.event_id)
        if session is not None and _is_getting_short(session):
            session = await self._extended(call, session)
        return await self._denial(call) if session is None else self._admission(session)

    def _admission(self, session: Session) -> Answer:
        who = quote(session.user_id, safe="").encode()
        what = (who, session.number, self._mint.now_ms() + session.left_ms)
        lines = b"Stanchion-User: %b\r\nStanchion-Number: %d\r\nStanchion-Session-Expires: %d\r\n" % what
        return Answer(204, headers=b"Cache-Control: no-store\r\n" + lines)

    async def _extended(self, call: Call, session: Session) -> Session | None:
        """Return a session, extended where the event wants that; the requests of one page extend it once.

        Where it cannot be extended, it may have ended meanwhile: then that is asked again.
        """
        event_id, arrival = call.event_id, session.arrival
        if (event_id, arrival) in self._extending:
            return session
        self._extending.add((event_id, arrival))
        try:
            settings = (await self._backend.event(event_id)).settings
            ttl_s: int = settings["session_ttl_s"]  # type: ignore[assignment]
            if not settings["session_extend"] or session.left_ms >= ttl_s * 500:
                return session
            return await self._backend.extend_session(event_id, Whom(arrival=arrival), ACTOR)
        except Refused:
            return await self._desk.session(call.request, event_id)
        finally:
            self._extending.discard((event_id, arrival))

    async def _denial(self, call: Call) -> Answer:
        """Return where to wait; raises Refused("not_found") for an event that is not there."""
        request, event_id = call.request, call.event_id
        settings = (await self._backend.event(event_id)).settings
        page = waiting_page(self._url, event_id, allowed(_original_url(call), settings))
        wants_plainly = DENY_PLAINLY in request.raw_path.partition("?")[2].split("&")
        if not wants_plainly and _original_method(request) in ("GET", "HEAD") and navigates(request):
            return Answer(302, b"", TEXT).with_headers(("Location", page))
        refused = Refused("bad_token", "no session of this event runs for this browser; Location says where to wait")
        return problem_answer(refused).with_headers(("Location", page))

    def routes(self) -> list[Route]:
        """Return the row."""
        return [
            Route(
                ANY,
                AUTH,
                self.auth,
                "Ask whether a browser may come in (forward-auth)",
                {204: None, 302: None},
                problems=(401,),
                tag="site",
                operation="auth",
                below=True,
            )
        ]


def _is_getting_short(session: Session) -> bool:
    """Return whether less than half of what was promised is left, and there is more to be had."""
    return session.left_ms * 2 < session.length_ms and session.left_ms < session.limit_left_ms


def _original_method(request: web.BaseRequest) -> str:
    headers = request.headers
    return headers.get(FORWARDED_METHOD) or headers.get(ORIGINAL_METHOD) or request.method


def _original_url(call: Call) -> str:
    """Return the address the browser asked for as far as it is told; anything may stand in it."""
    request, headers = call.request, call.request.headers
    below = request.raw_path[len(AUTH.format(event_id=call.event_id)) :]
    uri = headers.get(ORIGINAL_URI) or headers.get(FORWARDED_URI) or below
    if uri.startswith("/"):
        return f"{first_of(headers, FORWARDED_PROTO) or 'https'}://{host_of(request)}{uri}"
    return uri
