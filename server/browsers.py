"""Browsers: what they show and are given that other clients do not, cookies and navigation.

Cookies are named `__Host-…`: a browser takes such a name only over TLS, for this very host and all of its paths, so
neither a sibling domain nor a plain connection can have planted one. Over http on a loopback address, where browsers
refuse the prefix, the name stands without it, and only there it is believed.
"""

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy, istr

from server.config import is_loopback

FORWARDED_HOST = istr("X-Forwarded-Host")
FORWARDED_PROTO = istr("X-Forwarded-Proto")
FETCH_MODE = istr("Sec-Fetch-Mode")
PREFIX = "__Host-"


def navigates(request: web.BaseRequest) -> bool:
    """Return whether somebody looks at the answer: a browser that says so, or else a client that wants HTML."""
    mode = request.headers.get(FETCH_MODE)
    return mode == "navigate" if mode is not None else "text/html" in request.headers.get(hdrs.ACCEPT, "")


def first_of(headers: CIMultiDictProxy[str], name: istr) -> str:
    """Return the first item of a header that lists what each proxy saw: what the outermost one saw; "" without it."""
    return headers.get(name, "").partition(",")[0].strip()


def host_of(request: web.BaseRequest) -> str:
    """Return the host a browser asked for, with its port, through whatever proxies; "" for none."""
    host = first_of(request.headers, FORWARDED_HOST) or request.headers.get(hdrs.HOST, "")
    return host if host.isascii() else ""


def is_plain_loopback(request: web.BaseRequest) -> bool:
    """Return whether a browser speaks http to a loopback address."""
    host = host_of(request)
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name) and first_of(request.headers, FORWARDED_PROTO) != "https"


def cookie_of(request: web.BaseRequest, name: str) -> str | None:
    """Return the value of a cookie; `name` is without the prefix."""
    shown = request.headers.get(hdrs.COOKIE)
    if shown is None:
        return None
    value = _value(shown, PREFIX + name)
    return _value(shown, name) if value is None and is_plain_loopback(request) else value


def _value(shown: str, name: str) -> str | None:
    """Return the first value of a name in a Cookie header (RFC 6265, 5.4)."""
    for pair in shown.split(";"):
        its_name, _, value = pair.strip(" ").partition("=")
        if its_name == name:
            return value
    return None


def cookie_line(request: web.BaseRequest, name: str, value: str, max_age_s: int) -> tuple[str, str]:
    """Return the header that sets a cookie which no script reads; `name` is without the prefix."""
    facts = f"Max-Age={max_age_s}; Path=/; HttpOnly; SameSite=Lax"
    if is_plain_loopback(request):
        return "Set-Cookie", f"{name}={value}; {facts}"
    return "Set-Cookie", f"{PREFIX}{name}={value}; {facts}; Secure"
