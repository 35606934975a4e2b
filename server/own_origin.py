"""Which calls come from this server's own pages.

A cookie is sent along whatever page makes a browser call here, so it proves a place only where the browser says that
the call comes from a page of ours: `Origin` is our own, or there is none that says anything and `Sec-Fetch-Site`, which
no page can set, says the same. Our own origin is the public URL; without one it is the host that was asked for, over
TLS unless a browser speaks http to this machine itself.
"""

from collections.abc import Mapping

from aiohttp import hdrs, web

from engine.errors import Refused
from server.browsers import host_of, is_plain_loopback

# An Origin that names nobody → what Sec-Fetch-Site has to say then.
_SILENT: Mapping[str | None, frozenset[str]] = {
    None: frozenset(("same-origin", "none")),
    "null": frozenset(("same-origin",)),
}


def own_origin(request: web.BaseRequest, url: str) -> str:
    """Return the origin of our pages as a browser names it; `url` is how visitors reach this server, "" if unknown."""
    if url.startswith("https://"):
        return url
    return f"{'http' if is_plain_loopback(request) else 'https'}://{host_of(request).lower()}"


def check_same_origin(request: web.BaseRequest, url: str) -> None:
    """Raise Refused("forbidden") unless one of our own pages makes this call."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin == own_origin(request, url):
        return
    if request.headers.get("Sec-Fetch-Site") not in _SILENT.get(origin, ()):
        raise Refused("forbidden", "only this server's own waiting page may do that", field="Origin")
