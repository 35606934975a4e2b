"""Session cookies: the session token in a browser's hand, and the session it stands for."""

from aiohttp import web

from engine.actor import Whom
from engine.backend import Backend
from engine.errors import Refused
from engine.tokens import SessionToken
from engine.views import Session
from server.browsers import cookie_of
from server.mint import Mint

_IS_NOBODYS = frozenset(("bad_token", "not_found"))


def cookie_name(event_id: str) -> str:
    """Return the name of an event's session cookie, without the prefix."""
    return f"stanchion-session-{event_id}"


class SessionDesk:
    """Finds sessions by cookie."""

    def __init__(self, backend: Backend, mint: Mint) -> None:
        self._backend = backend
        self._mint = mint

    async def session(self, request: web.BaseRequest, event_id: str, jti: str | None = None) -> Session | None:
        """Return the session that runs, or whose confirmation page may still be seen; None for every other cookie.

        With a `jti` it must be the session that this pass began. The event may be one that is not there. Raises
        Refused when nothing can be said now.
        """
        token = cookie_of(request, cookie_name(event_id))
        if token is None:
            return None
        try:
            claims = self._mint.sessions.check(token, event_id, self._backend.epoch)
            if jti is not None and claims.jti != jti:
                return None
            session = await self._backend.session(event_id, Whom(arrival=claims.arrival))
        except Refused as refused:
            if refused.code in _IS_NOBODYS:
                return None
            raise
        return session if session is not None and _runs(session, claims) else None


def _runs(session: Session, claims: SessionToken) -> bool:
    """Return whether a session is that of the token and is not over, though nobody may have noticed that yet."""
    is_of_pass = session.status != "active" or session.jti == claims.jti
    return is_of_pass and session.user_id == claims.user_id and session.left_ms > 0
