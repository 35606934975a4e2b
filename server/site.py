"""The site's calls: what the protected shop asks about passes and sessions, with its site key.

A pass is checked by its signature; whether it still lets anyone in is for the room to say, whose clock stands still
over a pause and an outage. A redeem with an Idempotency-Key is answered the same however often it is repeated while
the session runs.
"""

from engine.actor import Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.identities import subject_of
from engine.tokens import SessionToken
from engine.views import Session
from server.answers import Answer, json_answer
from server.gate import Gate
from server.mint import Mint
from server.places import check_user_id, idempotency_key_of
from server.routes import Auth, Call, Route
from server.wire import CompletedAnswer, CompleteRequest, PassKeys, RedeemRequest, SessionAnswer

EVENT = "/v1/events/{event_id}"
JWKS_MAX_AGE_S = 300


class SiteApi:
    """The handlers."""

    def __init__(self, backend: Backend, mint: Mint, gate: Gate) -> None:
        self._backend = backend
        self._mint = mint
        self._gate = gate

    # ---- what others call too ---------------------------------------------------------------------

    async def redeem_pass(self, event_id: str, pass_: str, request: str | None, actor: str) -> SessionAnswer:
        """Redeem a pass once; the same `request` gets the same answer again. Raises Refused."""
        claims = self._mint.passes.check(pass_, event_id, self._backend.epoch)
        release = self._mint.passes.release_of(claims)
        if release is None:
            raise Refused("pass_expired", "this pass is of no admission of this server", reason="unknown")
        about = (claims.num, release, claims.sub, claims.jti, request, actor)
        session = await self._backend.redeem(event_id, *about)
        began_ms = session.began_wall_ms
        token = self._token(session, claims.epoch, began_ms, began_ms + session.limit_length_ms)
        ends = (began_ms + session.length_ms, began_ms + session.limit_length_ms)
        return SessionAnswer(session.user_id, session.number, "active", token, *ends)

    def _token(self, session: Session, epoch: int, began_ms: int, limit_ms: int) -> str:
        who = (session.event_id, session.user_id, session.arrival, session.number)
        return self._mint.sessions.mint(SessionToken(*who, session.jti, epoch, began_ms // 1000, limit_ms // 1000))

    def session_of(self, event_id: str, token: str) -> SessionToken:
        """Return the claims of a session token; raises Refused("bad_token")."""
        return self._mint.sessions.check(token, event_id, self._backend.epoch)

    # ---- handlers ---------------------------------------------------------------------------------

    async def redeem(self, call: Call) -> Answer:
        """Redeem a pass: the visitor becomes active and the pass is used up.

        With an Idempotency-Key it is safe to retry: the same key gets the same answer. Otherwise 409 `pass_used`; a
        pass that was not used in time is 410 `pass_expired`.
        """
        actor = self._gate.site(call.request, call.event_id)
        request = idempotency_key_of(call.request)
        return json_answer(await self.redeem_pass(call.event_id, call.body.pass_, request, actor))

    async def complete(self, call: Call) -> Answer:
        """End a released visitor's stay in the booking flow; frees the slot at once; repeating it is harmless."""
        actor = self._gate.site(call.request, call.event_id)
        whom = await self._whom(call)
        place = await self._backend.complete(call.event_id, whom, call.body.outcome, actor)
        return json_answer(CompletedAnswer(place.user_id, place.number, place.status, place.version))  # type: ignore[arg-type]

    async def extend(self, call: Call) -> Answer:
        """Give an active visitor more time, within session_max_s of the redeem."""
        actor = self._gate.site(call.request, call.event_id)
        session = await self._backend.extend_session(call.event_id, await self._whom(call), actor)
        now_ms = self._mint.now_ms()
        limit_ms = session.began_wall_ms + session.limit_length_ms
        token = self._token(
            session, self._backend.epoch, session.began_wall_ms, max(limit_ms, now_ms + session.limit_left_ms)
        )
        ends = (now_ms + session.left_ms, now_ms + session.limit_left_ms)
        return json_answer(SessionAnswer(session.user_id, session.number, "active", token, *ends))

    async def _whom(self, call: Call) -> Whom:
        """Return whom the body names: by user_id, pass or session, exactly one of them.

        An event that is made anew counts from 1 again, so a pass or session must be of whoever has its number now.
        """
        body, event_id = call.body, call.event_id
        pass_ = getattr(body, "pass_", None)
        if sum(part is not None for part in (body.user_id, pass_, body.session)) != 1:
            raise Refused("bad_request", "exactly one of user_id, pass and session says whose stay it is", field="body")
        if body.user_id is not None:
            return Whom(user_id=check_user_id(body.user_id))
        if body.session is not None:
            session = self.session_of(event_id, body.session)
            whom, subject = Whom(arrival=session.arrival), subject_of(event_id, session.user_id)
        else:
            claims = self._mint.passes.check(pass_ or "", event_id, self._backend.epoch)
            whom, subject = Whom(number=claims.num), claims.sub
        if subject_of(event_id, (await self._backend.find(event_id, whom)).user_id) != subject:
            raise Refused("not_found", "nobody here holds this pass or session")
        return whom

    async def keys(self, call: Call) -> Answer:
        """Answer the public keys of passes and receipts; a new key is here five minutes before it signs."""
        answer = json_answer(self._mint.passes.jwks())
        answer.headers = b"Cache-Control: public, max-age=%d\r\n" % JWKS_MAX_AGE_S
        return answer

    def routes(self) -> list[Route]:
        """Return the rows; `extend` shares its row with the visitor's."""
        retry = {"Idempotency-Key": "what makes retrying safe: the same key gets the same answer"}
        return [
            Route(
                "POST",
                f"{EVENT}/redeem",
                self.redeem,
                "Redeem a pass",
                {200: SessionAnswer},
                Auth.SITE_KEY,
                guard=self._gate.site,
                body=RedeemRequest,
                problems=(401, 409, 410),
                headers=retry,
                tag="site",
                operation="redeem",
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
            Route("GET", "/.well-known/jwks.json", self.keys, "Public keys of passes", {200: PassKeys}, tag="site"),
        ]
