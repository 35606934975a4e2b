"""The waiting page /w/{event_id}: the visitor's calls as HTML, for browsers without JavaScript.

The browser holds the place in a cookie. A GET shows what there is: it never joins and never takes a place over, so
that previews of a link change nothing; with the cookie it is presence, like any other poll, and it comes again by
itself. Everything that changes something is a form, taken only from this server's own pages (`server.own_origin`)
and answered with a redirect back to the GET. A form carries a key nobody can guess, made with the page: it is the
Idempotency-Key of the join, so a double click or a reload is one place.

Nothing is decided here: places come from the same desk as in the JSON calls, words from `server.page_words`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from secrets import token_urlsafe
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from aiohttp import web
from jinja2 import Environment, StrictUndefined
from msgspec.structs import replace

from engine.backend import Backend
from engine.errors import Refused
from engine.tokens import QUEUE_TOKEN_LIFE_S, QueueToken
from engine.views import EventView, Place
from server.answers import HTML, Answer, problem_answer
from server.browsers import cookie_line, cookie_of, navigates
from server.docs_page import content_security_policy
from server.moving import ENDED, Moving
from server.own_origin import check_same_origin, own_origin
from server.page_words import Sentence, Told, Words, words_of_event, words_of_place, words_of_refusal
from server.places import PlaceDesk, holder_of
from server.return_to import LONGEST_RETURN_TO, allowed
from server.routes import FORM_TYPE, Call, Route
from server.wire import EventAnswer, IdempotencyKey, PlaceAnswer, Token

PAGE = "/w/{event_id}"
SOONEST_REFRESH_S = 5  # there must be time to read, and to press a button
LATEST_REFRESH_S = 60
LOBBY_REFRESH_S = 20
# A cookie whose token meets one of these stands for no place that could still be shown.
LOST = frozenset(("bad_token", "not_found", "gone", "not_open", "closed", "banned"))
GIVEN_UP = frozenset(("lobby", "waiting", "parked", "ready"))
_MEMORY = re.compile(r"([0-9]{1,10})-([0-9]{1,10})-([01])")


class PageQuery(msgspec.Struct):
    """What an address of the page may carry; anything else in it is left alone, links pick up parameters on the way."""

    return_to: str | None = None
    code: str | None = None
    step: str | None = None


class JoinForm(msgspec.Struct, forbid_unknown_fields=True):
    """The form that joins: a key made with the page makes sending it twice safe."""

    key: IdempotencyKey


class TakeOverForm(msgspec.Struct, forbid_unknown_fields=True):
    """The form that takes a place over from another device."""

    code: Token
    key: IdempotencyKey


class EmptyForm(msgspec.Struct, forbid_unknown_fields=True):
    """A form that is only a button."""


class Form(NamedTuple):
    """A form on the page: where it is sent, the words on its button, its hidden fields, and whether it stands out."""

    action: str
    label: str
    fields: Mapping[str, str]
    is_main: bool = False


@dataclass(slots=True)
class Shown:
    """What a page is made of, beside its words; the template knows no more than this."""

    words: Words
    name: str | None = None
    message: str | None = None
    refresh_s: int | None = None
    goes_back: bool = False
    address: str | None = None
    enter_url: str | None = None
    pass_: str | None = None
    code: tuple[str, str] | None = None
    forms: list[Form] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


class Visit(NamedTuple):
    """One request for a page of an event that is there; `return_to` is allowed, `notes` say what was left out."""

    request: web.BaseRequest
    view: EventView
    event: EventAnswer
    return_to: str | None
    notes: Sequence[Sentence]

    def address(self, action: str = "", **query: str) -> str:
        """Return an address of the page that keeps where to go on to."""
        return _address(self.view.event_id, action, return_to=self.return_to, **query)


class Held(NamedTuple):
    """The place a cookie stands for; `was_parked`: until this request."""

    claims: QueueToken
    place: Place
    was_parked: bool


class WaitingPage:
    """The handlers. `url` is how visitors reach this server, "" where that is not known."""

    def __init__(self, backend: Backend, desk: PlaceDesk, moving: Moving, url: str = "") -> None:
        self._backend = backend
        self._desk = desk
        self._moving = moving
        self._url = url
        text = resources.files("server").joinpath("pages/waiting.html").read_text("utf-8")
        jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self._template = jinja.from_string(text)
        policy = content_security_policy(text.encode(), form_action="'self'")
        self._headers = f"Content-Security-Policy: {policy}\r\nCache-Control: no-store\r\n".encode()

    # ---- reading ------------------------------------------------------------------------------------

    async def page(self, call: Call) -> Answer:
        """Show the event, or with the page's cookie the place in it; never joins, never takes a place over.

        `return_to` is where to go on to when it is one's turn, on an origin the event allows; `code` asks whether to
        take a place over from another device; `step=leave` asks whether to leave.
        """
        visit = await self._visit(call)
        held = await self._held(call.request, call.event_id)
        if call.query.code:
            return self._answer(self._asking_to_take_over(visit, held, call.query.code))
        if held is None:
            return self._answer(self._outside(visit))
        if call.query.step == "leave" and held.place.status in GIVEN_UP and held.place.proven:
            return self._answer(self._asking_to_leave(visit))
        return self._inside(visit, held)

    async def _visit(self, call: Call) -> Visit:
        view = await self._backend.event(call.event_id)
        wanted = call.query.return_to
        return_to = None if wanted is None else _way_back(view, wanted)
        notes = [_NOT_ALLOWED] if wanted is not None and return_to is None else []
        return Visit(call.request, view, self._desk.render_event(view), return_to, notes)

    async def _held(self, request: web.BaseRequest, event_id: str) -> Held | None:
        """Return the place of the request's cookie, and note that its holder is here; None where there is none."""
        token = cookie_of(request, cookie_name(event_id))
        if token is None:
            return None
        try:
            claims = self._desk.check(token, event_id)
            was_parked = await self._is_parked(claims)
            return Held(claims, await self._desk.touch(claims), was_parked)
        except Refused as refused:
            if refused.code in LOST:
                return None
            raise

    async def _is_parked(self, claims: QueueToken) -> bool:
        """Return whether a place waits for its holder to come back; asking is no presence."""
        try:
            return (await self._backend.place(claims.event_id, holder_of(claims))).status == "parked"
        except Refused as refused:
            if refused.code == "not_found":  # to be taken up again by the touch, perhaps
                return False
            raise

    # ---- pages --------------------------------------------------------------------------------------

    def _outside(self, visit: Visit) -> Shown:
        """Show the event to somebody without a place."""
        event, is_signed = visit.event, visit.view.settings["join_policy"] == "signed"
        shown = self._shown(visit, words_of_event(event, is_signed=is_signed))
        if event.state == "draft":
            coming = [at for at in (event.lobby_opens_at_ms, event.opens_at_ms) if at is not None and at > event.now_ms]
            shown.refresh_s = _bounded(min(coming, default=event.now_ms + 60_000) - event.now_ms)
        elif event.state != "closed" and not is_signed:
            shown.forms.append(Form(visit.address(), "Join the line", {"key": token_urlsafe(16)}, is_main=True))
        return shown

    def _inside(self, visit: Visit, held: Held) -> Answer:
        """Show a place to whoever holds it, or held it before; remember what was shown."""
        claims, place, request = held.claims, held.place, visit.request
        if visit.return_to is not None:
            place = replace(place, return_to=visit.return_to)
        before, was_away = self._remembered(request, place)
        was_away = not place.release and (was_away or held.was_parked)
        token = self._desk.renewed(claims, place)
        rendered = self._desk.render(place, token, before)
        words = words_of_place(Told(visit.event, rendered, place.proven, place.release, was_away))
        shown = self._shown(visit, words)
        shown.refresh_s = _refresh_s(place, rendered)
        if rendered.enter_url is not None:
            shown.enter_url = rendered.enter_url
        else:
            shown.pass_ = rendered.pass_
        shown.forms, shown.links = _offers(visit, place)
        answer = self._answer(shown)
        if token is not None:
            answer.with_headers(cookie_line(request, cookie_name(place.event_id), token, QUEUE_TOKEN_LIFE_S))
        memory, name = f"{place.arrival}-{rendered.position or before or 0}-{was_away:d}", _memory_name(place.event_id)
        if cookie_of(request, name) != memory:
            answer.with_headers(cookie_line(request, name, memory, QUEUE_TOKEN_LIFE_S))
        return answer

    def _remembered(self, request: web.BaseRequest, place: Place) -> tuple[int | None, bool]:
        """Return what was shown of this place before: the position, and that it was stepped over."""
        found = _MEMORY.fullmatch(cookie_of(request, _memory_name(place.event_id)) or "")
        if found is None or int(found[1]) != place.arrival:
            return None, False
        return int(found[2]) or None, found[3] == "1"

    def _asking_to_leave(self, visit: Visit) -> Shown:
        shown = self._shown(visit, _WORDS_OF_LEAVING)
        shown.refresh_s, shown.goes_back = LATEST_REFRESH_S // 2, True
        shown.forms.append(Form(visit.address("/leave"), "Yes, give my place up", {}))
        shown.links.append((visit.address(), "No, keep my place"))
        return shown

    def _asking_to_take_over(self, visit: Visit, held: Held | None, code: str) -> Shown:
        """Ask, because a GET alone (a preview of the link) must not take anything over."""
        shown = self._shown(visit, _WORDS_OF_TAKING_OVER)
        own = None if held is None or held.place.status in ENDED or not held.place.proven else held.place
        if own is not None:
            which = "a place in the lobby" if own.number is None else f"number {own.number:,}"
            lost = f"This device holds {which} at this event. If that is another place, it is not shown here any more."
            shown.words.sentences.append(Sentence(lost))
        fields, label = {"code": code, "key": token_urlsafe(16)}, "Take the place over on this device"
        shown.forms.append(Form(visit.address("/take-over"), label, fields, is_main=True))
        shown.links.append((visit.address(), "No, leave it where it is"))
        return shown

    # ---- writing ------------------------------------------------------------------------------------

    async def page_join(self, call: Call) -> Answer:
        """Join the line as a form does, from this server's own page; the cookie in the answer is the proof.

        A place that the cookie stands for and that is still held is kept.
        """
        visit = await self._visit_to_write(call)
        held = await self._held(call.request, call.event_id)
        if held is not None and held.place.status not in ENDED:
            return _see(visit)
        place = await self._desk.join(call.event_id, None, None, call.body.key)
        if not place.proven:
            raise Refused("read_only", "this place has moved to another device")
        return self._see_own(visit, place)

    async def page_leave(self, call: Call) -> Answer:
        """Give the place of the page's cookie up for good; repeating it is harmless."""
        visit = await self._visit_to_write(call)
        await self._backend.leave(call.event_id, holder_of(self._claims(call)))
        return _see(visit)

    async def page_extend(self, call: Call) -> Answer:
        """More time to claim the turn, for the place of the page's cookie."""
        visit = await self._visit_to_write(call)
        await self._backend.extend_claim(call.event_id, holder_of(self._claims(call)))
        return _see(visit)

    async def page_move(self, call: Call) -> Answer:
        """Show a one-time code that moves the place of the page's cookie to another device."""
        visit = await self._visit_to_write(call)
        place = await self._desk.touch(self._claims(call))
        offer = self._moving.offer(place)
        shown = self._shown(visit, _WORDS_OF_MOVING)
        url = f"{own_origin(call.request, self._url)}{visit.address(code=offer.code)}"
        shown.code = (offer.code, url)
        shown.refresh_s, shown.goes_back = max(LATEST_REFRESH_S // 2, place.presence_timeout_s * 2 // 3), True
        shown.links.append((visit.address(), "Back to your place"))
        return self._answer(shown)

    async def page_take_over(self, call: Call) -> Answer:
        """Take a place over with the code that another device showed; the cookie in the answer is the new proof."""
        visit = await self._visit_to_write(call)
        place = await self._moving.accept(call.event_id, call.body.code, call.body.key)
        return self._see_own(visit, place)

    async def _visit_to_write(self, call: Call) -> Visit:
        check_same_origin(call.request, self._url)
        return await self._visit(call)

    def _claims(self, call: Call) -> QueueToken:
        token = cookie_of(call.request, cookie_name(call.event_id))
        if token is None:
            raise Refused("bad_token", "this browser holds no place at this event")
        return self._desk.check(token, call.event_id)

    def _see_own(self, visit: Visit, place: Place) -> Answer:
        """Send the holder on to the place, with the cookie that proves it."""
        token = self._desk.token_for(place)
        cookie = cookie_line(visit.request, cookie_name(place.event_id), token, QUEUE_TOKEN_LIFE_S)
        return _see(visit).with_headers(cookie)

    # ---- answers ------------------------------------------------------------------------------------

    def _shown(self, visit: Visit, words: Words) -> Shown:
        told = words._replace(sentences=[*words.sentences, *visit.notes])
        name = visit.event.name or visit.event.event_id
        return Shown(told, name, visit.event.message, address=visit.address())

    def _answer(self, shown: Shown, status: int = 200) -> Answer:
        return Answer(status, self._template.render(shown=shown).encode(), HTML, self._headers)

    def refusal(self, request: web.BaseRequest, event_id: str, refused: Refused) -> Answer:
        """Return a page that says what is refused; the problem document for whoever does not ask for HTML."""
        if not navigates(request):
            return problem_answer(refused)
        shown = Shown(words_of_refusal(refused))
        if refused.code != "not_found":
            shown.address = _address(event_id, return_to=request.query.get("return_to"))
            shown.links.append((shown.address, "Back to the waiting page"))
        if refused.status >= 500 and request.method != "POST":  # who waits here must not be lost by a bad moment
            shown.refresh_s = max(SOONEST_REFRESH_S, refused.retry_after_s or LATEST_REFRESH_S // 6)
        answer = self._answer(shown, refused.status)
        if refused.retry_after_s is not None:
            answer.with_headers(("Retry-After", str(refused.retry_after_s)))
        return answer

    def routes(self) -> list[Route]:
        """Return the rows."""
        row = partial(Route, query=PageQuery, content_type="text/html", tag="pages", refusal=self.refusal)
        form = partial(row, "POST", body_type=FORM_TYPE, problems=(401, 403, 409, 410))
        see = {303: None}
        return [
            row("GET", PAGE, self.page, "The waiting page", {200: str}),
            form(PAGE, self.page_join, "Join by the page's form", see, body=JoinForm),
            form(f"{PAGE}/leave", self.page_leave, "Leave by the page's form", see, body=EmptyForm),
            form(f"{PAGE}/extend", self.page_extend, "Get more time by the page's form", see, body=EmptyForm),
            form(f"{PAGE}/move", self.page_move, "Show a code for another device", {200: str}, body=EmptyForm),
            form(f"{PAGE}/take-over", self.page_take_over, "Take a place over by a form", see, body=TakeOverForm),
        ]


# ---- small parts ------------------------------------------------------------------------------------------


_NOT_ALLOWED = Sentence("The address to go on to is not one this event allows, so it is not used.")
_WORDS_OF_LEAVING = Words(
    "Leave the line?",
    "Leave the line?",
    [Sentence("Your place is given up for good. Whoever joins again starts at the end.")],
    [],
)
_WORDS_OF_TAKING_OVER = Words(
    "Take a place over?",
    "Take a place over?",
    [Sentence("This link moves a place in line to this device. The other device only shows it from then on.")],
    [],
)
_WORDS_OF_MOVING = Words(
    "Move to another device",
    "Move to another device",
    [
        Sentence("Open this address on the other device within five minutes. It works once, and your place moves."),
        Sentence("Keep it to yourself: whoever opens it first has your place."),
    ],
    [],
)


def _way_back(view: EventView, wanted: str) -> str | None:
    """Return where to go on to, if the event allows it and a proxy takes an answer's head with it in it."""
    return_to = allowed(wanted, view.settings)
    is_short = return_to is not None and len(quote(return_to, safe="")) <= LONGEST_RETURN_TO
    return return_to if is_short else None


def cookie_name(event_id: str) -> str:
    """Return the name of the cookie that holds the queue token, without its prefix."""
    return f"stanchion-{event_id}"


def _memory_name(event_id: str) -> str:
    """Return the name of the cookie that holds what was shown; no event id has a full stop, so no two names meet."""
    return f"stanchion-{event_id}.shown"


def _address(event_id: str, action: str = "", **query: str | None) -> str:
    """Return an address of the page; what visitors sent stands in it percent-encoded only."""
    pairs = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value is not None)
    return f"/w/{event_id}{action}{'?' if pairs else ''}{pairs}"


def _see(visit: Visit) -> Answer:
    return Answer(303, b"", HTML).with_headers(("Location", visit.address()))


def _bounded(wait_ms: int) -> int:
    return max(SOONEST_REFRESH_S, min(LATEST_REFRESH_S, wait_ms // 1000))


def _refresh_s(place: Place, rendered: PlaceAnswer) -> int | None:
    """Return when the page comes again: a ready one at half of its time, so that the pass is a fresh one in time."""
    if place.status in ENDED:
        return None
    if place.status == "ready" and place.proven:
        return _bounded((place.window_ms or 0) // 2)
    if place.status == "lobby":
        return min(LOBBY_REFRESH_S, place.presence_timeout_s // 3)
    if place.status == "waiting" and place.proven:
        return max(SOONEST_REFRESH_S, rendered.poll_after_seconds)
    return LATEST_REFRESH_S


def _offers(visit: Visit, place: Place) -> tuple[list[Form], list[tuple[str, str]]]:
    """Return what can be done with a place from here."""
    forms: list[Form] = []
    links: list[tuple[str, str]] = []
    if place.status in ENDED:
        if visit.event.state in ("lobby", "open", "paused") and visit.view.settings["join_policy"] == "open":
            forms.append(Form(visit.address(), "Join again, at the end", {"key": token_urlsafe(16)}, is_main=True))
        return forms, links
    if place.proven and place.status == "ready" and (place.limit_ms or 0) > (place.window_ms or 0):
        forms.append(Form(visit.address("/extend"), "Give me more time", {}))
    if place.proven and place.status in GIVEN_UP:
        forms.append(Form(visit.address("/move"), "Move to another device", {}))
        links.append((visit.address(step="leave"), "Leave the line"))
    links.append((visit.address(), "Update this page now"))
    return forms, links
