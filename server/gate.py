"""The gate: asks for keys, names who shows them, and says what each may do.

A key is recognised by a digest of its own, keyed with a salt that this process made at its start and nobody sees,
in one dictionary. That is as good as comparing in constant time, and does not grow with the number of keys: how
long a lookup takes may depend on how digests resemble each other, but who does not know the salt cannot choose
the digest of what they show, nor come nearer to that of a good key by trying.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address

import structlog
from aiohttp import hdrs, web

from engine.errors import Refused
from server.config import Network
from server.key_files import LONGEST_KEY
from server.key_kinds import ROLES, Key
from server.key_ring import KeyRing, digest_of

BAD_KEYS_LIMIT = 10
BAD_KEYS_WINDOW_S = 60
ADDRESSES_LIMIT = 10_000
GATED = ("admin", "site")
NO_SUCH_EVENT = "there is no such event"  # word for word what the engine says of an event that is not there

log = structlog.get_logger("stanchion.keys")


def client_address(request: web.BaseRequest, trusted_proxies: Sequence[Network]) -> str:
    """Return who is calling: the peer, or the first from the right in X-Forwarded-For that is no trusted proxy."""
    address = _plain(request.remote or "")
    hops = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, ())).split(",") if trusted_proxies else []
    while hops and _is_trusted(address, trusted_proxies):
        before = _plain(hops.pop().strip())
        if not before:
            break
        address = before
    return address


def _plain(text: str) -> str:
    """Return an address in its shortest form, IPv4 in IPv6 as IPv4; "" for what is no address."""
    try:
        address = ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _is_trusted(address: str, networks: Iterable[Network]) -> bool:
    return bool(address) and any(ip_address(address) in network for network in networks)


class Gate:
    """Asks for keys and names who shows them; takes up changes of the ring. `clock` is monotonic, in seconds.

    Ten bad keys from one address within a minute, and that address is answered 429 until the minute is over. A
    good key always passes: nobody guesses 256 bits, while a lock on the good key would let anyone behind the same
    address (every visitor, where a proxy stands in front) shut the operator and the shop out. A good key that may
    not do what it asks for is no bad key.
    """

    def __init__(self, ring: KeyRing, clock: Callable[[], float], trusted_proxies: Sequence[Network] = ()) -> None:
        self._ring = ring
        self._salt = secrets.token_bytes(32)
        self._keys: dict[bytes, Key] = {}
        self._clock = clock
        self._trusted_proxies = trusted_proxies
        self._bad: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._take_keys()
        ring.on_change(self._take_keys)

    def _take_keys(self) -> None:
        self._keys = {self._salted(key.digest or ""): key for kind in GATED for key in self._ring.live(kind)}

    # ---- operators ----------------------------------------------------------------------------------

    def admin(self, request: web.BaseRequest) -> str:
        """Return the actor's name, whatever the role; raises Refused: bad_token or too_many_requests."""
        return self._ask(request, "admin").name

    def operator(self, request: web.BaseRequest) -> str:
        """Return the actor's name if they may act on events; raises Refused, also with forbidden."""
        return self._ask_role(request, "operator")

    def owner(self, request: web.BaseRequest) -> str:
        """Return the actor's name if they may do everything; raises Refused, also with forbidden."""
        return self._ask_role(request, "owner")

    def _ask_role(self, request: web.BaseRequest, needed: str) -> str:
        key = self._ask(request, "admin")
        if ROLES.index(key.role or ROLES[0]) < ROLES.index(needed):
            raise Refused("forbidden", f"this takes an admin key of role {needed}; this one is of role {key.role}")
        return key.name

    # ---- sites --------------------------------------------------------------------------------------

    def site(self, request: web.BaseRequest, event_id: str | None = None) -> str:
        """Return the site's name; without an event, whatever events its key is good for.

        Raises Refused: bad_token, too_many_requests, or not_found, as where there is no such event, for an event
        of others.
        """
        return _in_scope(self._ask(request, "site"), event_id).name

    def is_site(self, request: web.BaseRequest, event_id: str | None = None) -> bool:
        """Return whether a call carries a site key; anything else is no offence here.

        Raises Refused with not_found when the key is not good for the event.
        """
        shown = bearer(request)
        key = self._find(shown, "site") if shown.startswith("stn_site_") else None
        return key is not None and bool(_in_scope(key, event_id))

    # ---- all ----------------------------------------------------------------------------------------

    def _ask(self, request: web.BaseRequest, kind: str) -> Key:
        shown = bearer(request)
        key = self._find(shown, kind)
        if key is not None:
            return key
        if not shown:
            raise Refused("bad_token", f"Authorization: Bearer <{kind} key> is required")
        self._count(client_address(request, self._trusted_proxies))
        raise Refused("bad_token", f"this is no {kind} key of this server")

    def _find(self, shown: str, kind: str) -> Key | None:
        key = self._keys.get(self._salted(digest_of(shown)))
        return key if key is not None and key.kind == kind and key.is_live(self._ring.now_ms()) else None

    def _count(self, address: str) -> None:
        now = self._clock()
        since, count = self._bad.get(address, (now, 0))
        if now - since >= BAD_KEYS_WINDOW_S:
            since, count = now, 0
        self._bad[address] = since, count + 1
        self._bad.move_to_end(address)
        if len(self._bad) > ADDRESSES_LIMIT:
            self._bad.popitem(last=False)
        if count + 1 == BAD_KEYS_LIMIT:
            log.warning("bad_keys_locked_out", address=address, seconds=BAD_KEYS_WINDOW_S)
        if count >= BAD_KEYS_LIMIT:
            retry_after_s = max(1, round(since + BAD_KEYS_WINDOW_S - now))
            raise Refused("too_many_requests", "too many bad keys from this address", retry_after_s=retry_after_s)

    def _salted(self, digest: str) -> bytes:
        return blake2b(digest.encode(), key=self._salt, digest_size=32).digest()


def _in_scope(key: Key, event_id: str | None) -> Key:
    if event_id is not None and not key.covers(event_id):
        raise Refused("not_found", NO_SUCH_EVENT)
    return key


def bearer(request: web.BaseRequest) -> str:
    """Return the key or token of the Authorization header; "" when there is none to be used."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and len(key) <= LONGEST_KEY else ""
