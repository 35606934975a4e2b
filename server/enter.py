"""Entering: the way of a browser from the waiting page into the shop. The pass is the proof, no key is asked for.

The front of the shop routes `/.stanchion/enter` of its own origin here, so that the cookie set is the shop's. The
pass is redeemed, the session token becomes a cookie, and the browser is sent on.

A pass enters once, but an answer may get lost on the way to a phone, and people reload and click twice. What tells
the same browser from another one that got hold of the address?

* A browser that shows the session this pass began is sent on again; nothing is redeemed.
* A browser that says what it fetches for (`Sec-Fetch-Mode`, as all of the last years do) is first given a random nonce
  as a cookie and sent to the same address once more. The redeem goes by that nonce the way it goes by an
  Idempotency-Key: as often as this browser asks, it is the same redeem. Another browser has another nonce and is
  answered 409. Where the nonce does not come back, cookies are refused; then nothing is redeemed, for there would be
  nothing to show for it.
* A client that says nothing is redeemed at once, with the nonce if it has one; what it gets has to arrive.

Two tabs in the same instant may each be given a nonce, and one of them the 409; reloading it finds the session.
"""

import re
from base64 import b16encode
from hashlib import blake2b
from html import escape
from secrets import token_urlsafe
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from engine.backend import Backend
from engine.errors import Refused
from engine.passes import PassClaims
from server.answers import HTML, TEXT, Answer, problem_answer
from server.browsers import FETCH_MODE, cookie_line, cookie_of, navigates
from server.mint import Mint
from server.return_to import allowed, waiting_page
from server.routes import Call, Route
from server.session_cookies import SessionDesk, cookie_name
from server.site import SiteApi
from server.wire import SessionAnswer

ACTOR = "enter"
NONCE_LIFE_S = 3600
# How much longer the cookie lives than the session was promised to: the room decides, whose clock stands still over a
# pause, and who has completed late still sees the confirmation page.
COOKIE_LEEWAY_S = 24 * 3600
_NONCE = re.compile(r"[A-Za-z0-9_-]{22}")
_POLICY = ("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_WORDS = {
    "pass_used": (
        "This turn has been used",
        "Whoever used it is in the shop already. If that was you, in another window, go on there. Otherwise you can "
        "join the line again.",
    ),
    "pass_expired": (
        "This turn is over",
        "It was not used in time. The waiting page shows whether you keep a place in line.",
    ),
    "bad_token": (
        "This is not a turn",
        "The address is not complete. Go back to the waiting page and enter from there.",
    ),
    "bad_request": (
        "Cookies are needed",
        "Your browser did not keep the cookie that shows your turn to the shop. Allow cookies for this site and enter "
        "again from the waiting page. Your turn has not been used.",
    ),
}
_OTHER_WORDS = ("This did not work", "Your turn may not have been used. Load this page again in a moment.")


class EnterQuery(msgspec.Struct, rename={"pass_": "pass"}):
    """Which event, with which pass, and where to go then; `step` is set by the server itself."""

    event: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
    pass_: str
    to: str = ""
    step: Literal[1, 2] = 1


class Enter:
    """The handler. `url` is where visitors reach this server, "" where the front routes /w/ here."""

    def __init__(self, backend: Backend, mint: Mint, site: SiteApi, desk: SessionDesk, url: str = "") -> None:
        self._backend = backend
        self._mint = mint
        self._site = site
        self._desk = desk
        self._url = url

    async def enter(self, call: Call) -> Answer:
        """Redeem a pass for a browser: set the session cookie and send it on to `to`.

        `to` must lead to one of the event's `return_to_origins`; otherwise the browser is sent to `return_to`, and told
        so in words where there is none. Asking again from the same browser is answered the same; from another one 409
        `pass_used`. A browser may be sent to the same address once before, to see whether it keeps cookies.
        """
        query: EnterQuery = call.query
        settings = (await self._backend.event(query.event)).settings
        to = allowed(query.to, settings) or allowed(str(settings["return_to"]), settings)
        try:
            return await self._entered(call.request, query, to)
        except Refused as refused:
            return _refusal(call.request, refused, waiting_page(self._url, query.event, to))

    async def _entered(self, request: web.BaseRequest, query: EnterQuery, to: str | None) -> Answer:
        claims = self._mint.passes.check(query.pass_, query.event, self._backend.epoch)
        if await self._desk.session(request, query.event, claims.jti) is not None:
            return _onward(to)
        nonce = _nonce_of(request, query.event)
        if request.method != "GET" or (nonce is None and (FETCH_MODE in request.headers or query.step == 2)):
            return _once_more(request, query, to)
        key = None if nonce is None else _request_key(claims, nonce)
        session = await self._site.redeem_pass(query.event, query.pass_, key, ACTOR)
        return _onward(to).with_headers(self._session_cookie(request, query.event, session))

    def _session_cookie(self, request: web.BaseRequest, event_id: str, session: SessionAnswer) -> tuple[str, str]:
        left_s = max(0, session.session_max_expires_ms - self._mint.now_ms()) // 1000
        return cookie_line(request, cookie_name(event_id), session.session, left_s + COOKIE_LEEWAY_S)

    def routes(self) -> list[Route]:
        """Return the row."""
        return [
            Route(
                "GET",
                "/v1/enter",
                self.enter,
                "Enter the shop with a pass",
                {200: str, 303: None},
                query=EnterQuery,
                problems=(401, 404, 409, 410, 503),
                content_type="text/plain",
                tag="site",
            )
        ]


def _nonce_name(event_id: str) -> str:
    """Return the name of the nonce's cookie: the dot keeps it apart from the waiting page's, whatever the event."""
    return f"stanchion.enter-{event_id}"


def _nonce_of(request: web.BaseRequest, event_id: str) -> str | None:
    nonce = cookie_of(request, _nonce_name(event_id))
    return nonce if nonce is not None and _NONCE.fullmatch(nonce) else None


def _request_key(claims: PassClaims, nonce: str) -> str:
    """Return what the redeem is repeated by: no Idempotency-Key has a space in it, and the log shows nobody's nonce."""
    digest = blake2b(f"{claims.jti} {nonce}".encode(), digest_size=16, person=b"stanchion enter").digest()
    return f"{ACTOR} {b16encode(digest).decode()}"


def _once_more(request: web.BaseRequest, query: EnterQuery, to: str | None) -> Answer:
    """Return a browser to the same address with a nonce; raises Refused when it came back without."""
    if query.step == 2:
        raise Refused("bad_request", "this browser keeps no cookies; nothing was redeemed", field="Cookie")
    facts = {"event": query.event, "pass": query.pass_, "to": to or "", "step": "2"}
    again = "?" + urlencode(facts, quote_via=quote, safe="")
    nonce = cookie_line(request, _nonce_name(query.event), token_urlsafe(16), NONCE_LIFE_S)
    return Answer(303, b"", TEXT).with_headers(("Location", again), nonce)


def _onward(to: str | None) -> Answer:
    if to is None:
        return Answer(200, b"You are in. Go on in the shop.\n", TEXT)
    return Answer(303, b"", TEXT).with_headers(("Location", to))


def _refusal(request: web.BaseRequest, refused: Refused, page: str) -> Answer:
    """Return a refusal for people where a browser navigates, as a problem document otherwise."""
    answer = problem_answer(refused)
    if navigates(request):
        title, text = _WORDS.get(refused.code, _OTHER_WORDS)
        answer.body, answer.content_type = _page(title, text, page), HTML
        answer.with_headers(_POLICY)
    return answer


def _page(title: str, text: str, address: str) -> bytes:
    """Return a page without any style or script of its own."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title></head><body><main><h1>{title}</h1><p>{text}</p>"
        f'<p><a href="{escape(address)}">To the waiting page</a></p></main></body></html>\n'
    ).encode()
