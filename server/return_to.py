"""The way back: which addresses of a shop a visitor may be sent to, so that no link of ours leads anywhere else.

An address is taken when its origin is one of the event's `return_to_origins` and it is written so that every browser
reads the same origin from it: http or https, a host, maybe a port, then a path. Browsers mend a lot (backslashes,
line breaks, missing slashes, user info in front of an @), so nothing that would have to be mended is taken.
"""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

LONGEST_RETURN_TO = 2048
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>(?:[/?#][^\x00-\x1f\x7f\\]*)?)",
    re.IGNORECASE | re.ASCII,  # without ASCII, "ſ" is an "s" and the Kelvin sign a "k"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEPT = "%/?#[]@!$&'()*+,;=:~"


def origin_of(address: str) -> str | None:
    """Return the origin of an address as browsers write it, None for what is not plainly one."""
    found = _ADDRESS.fullmatch(address)
    return None if found is None else _origin(found)


def _origin(found: re.Match[str]) -> str:
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"] or _DEFAULT_PORTS[scheme])
    return f"{scheme}://{host}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{host}:{port}"


def allowed(address: str, settings: Mapping[str, object]) -> str | None:
    """Return an address ready for a Location header when an event's settings allow its origin, None otherwise."""
    found = _ADDRESS.fullmatch(address) if len(address) <= LONGEST_RETURN_TO else None
    if found is None:
        return None
    origins: Iterable[str] = settings["return_to_origins"]  # type: ignore[assignment]
    origin = _origin(found)
    if all(origin != origin_of(one) for one in origins):
        return None
    return origin + quote(found["rest"], safe=_KEPT, errors="surrogateescape")


def waiting_page(url: str, event_id: str, return_to: str | None) -> str:
    """Return the address of an event's waiting page, with the way back if there is one and it is not too long.

    Proxies refuse an answer whose head does not fit into a few kilobytes.
    """
    page = f"{url}/w/{event_id}"
    way_back = quote(return_to or "", safe="")
    return f"{page}?return_to={way_back}" if 0 < len(way_back) <= LONGEST_RETURN_TO else page
