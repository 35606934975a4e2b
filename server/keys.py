"""Keys: made on the first start, read on every other, and the gate that asks for them.

`DATA/keys/` holds one file a key, `stn_KIND_` and 32 random bytes in base64url. `queue.key` lists the secrets of
queue tokens, `ID SECRET` a line: the first signs, all are believed, so a new one can be put in front while
tokens of the old one are still out. The folder appears as a whole or not at all, under a temporary name first,
so a start that is killed leaves no half set behind.
"""

import hmac
import os
import re
import secrets
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import structlog
from aiohttp import hdrs, web

from engine.errors import BadConfiguration, Refused, StorageFailed
from server.config import Network

FOLDER = "keys"
KINDS = ("admin", "site", "replication")
ENTROPY_BYTES = 32
LONGEST_KEY = 256
BAD_KEYS_LIMIT = 10
BAD_KEYS_WINDOW_S = 60
ADDRESSES_LIMIT = 10_000

_KEY_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_SAMPLE = re.compile("changeme|change-me|change_me|example|password|placeholder|abcdefgh|01234567", re.IGNORECASE)
_LEAST_DIFFERENT_BYTES = 16

log = structlog.get_logger("stanchion.keys")


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """The keys of one data folder; has no repr, so that none of them strays into a log."""

    admin: str
    site: str
    replication: str
    queue_secrets: Mapping[str, bytes]
    queue_signing: str


def load_or_create(data: Path) -> tuple[Keys, bool]:
    """Return the keys of a data folder and whether they were just made.

    Raises BadConfiguration for keys that are weak, readable by others, incomplete, or gone from under a log.
    """
    folder = data / FOLDER
    fresh = not folder.is_dir() or not any(folder.iterdir())
    if fresh:
        if not folder.is_dir() and (data / "log").is_dir():
            raise BadConfiguration(
                f"{folder} is missing beside a log: without it every queue token is void. Put it back, or, to go on "
                f"with new keys, make an empty folder {folder}"
            )
        try:
            _create(data, folder)
        except OSError as error:
            raise StorageFailed(f"cannot make keys in {folder}: {error.strerror}") from error
    return _load(folder), fresh


def new_key(kind: str) -> str:
    """Return a key that nobody guesses."""
    return f"stn_{kind}_{_new_secret()}"


def _new_secret() -> str:
    return urlsafe_b64encode(secrets.token_bytes(ENTROPY_BYTES)).rstrip(b"=").decode()


def _create(data: Path, folder: Path) -> None:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{FOLDER}.", dir=data))
    for kind in KINDS:
        _write(temporary / f"{kind}.key", new_key(kind))
    _write(temporary / "queue.key", f"q{secrets.token_hex(4)} {_new_secret()}")
    _sync_folder(temporary)
    os.rename(temporary, folder)
    _sync_folder(data)


def _write(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load(folder: Path) -> Keys:
    _check_private(folder)
    single = {kind: _read_single(folder / f"{kind}.key", kind) for kind in KINDS}
    if len(set(single.values())) < len(single):
        raise BadConfiguration(f"{folder}: two of the keys are the same")
    queue = _read_queue(folder / "queue.key")
    return Keys(single["admin"], single["site"], single["replication"], queue, next(iter(queue)))


def _read_single(path: Path, kind: str) -> str:
    lines, prefix = _lines(path), f"stn_{kind}_"
    if len(lines) != 1 or not lines[0].startswith(prefix):
        raise BadConfiguration(f"{path}: must hold one line that begins with {prefix}")
    _secret(path, lines[0].removeprefix(prefix))
    return lines[0]


def _read_queue(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for line in _lines(path):
        key_id, _, text = line.partition(" ")
        if not _KEY_ID.fullmatch(key_id) or key_id in found:
            raise BadConfiguration(f"{path}: each line must be an id of its own, a space and a secret")
        found[key_id] = _secret(path, text)
    if not found:
        raise BadConfiguration(f"{path}: holds no key")
    return found


def _lines(path: Path) -> list[str]:
    _check_private(path)
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: cannot be read: {getattr(error, 'strerror', 'it is not ASCII')}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _check_private(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}; put it back from where it was") from None
    if mode & 0o077:
        raise BadConfiguration(f"{path}: others may read or write it; run chmod go= {path}")


def _secret(path: Path, text: str) -> bytes:
    """Return the bytes of a secret; refuses what is short, patterned, or copied from a page of samples."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4)) if _BASE64URL.fullmatch(text) else b""
    except Base64Error:
        raw = b""
    if not ENTROPY_BYTES <= len(raw) <= LONGEST_KEY // 2:
        raise BadConfiguration(f"{path}: the secret must be at least {ENTROPY_BYTES} random bytes in base64url")
    if len(set(raw)) < _LEAST_DIFFERENT_BYTES or _SAMPLE.search(text):
        raise BadConfiguration(
            f"{path}: the secret is weak or a sample; remove the folder's files to have new ones made"
        )
    return raw


# ---- the gate -----------------------------------------------------------------------------------------


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
    """Asks for keys and names who shows them. `clock` is monotonic, in seconds.

    Ten bad keys from one address within a minute, and that address is answered 429 until the minute is over. A
    good key always passes: nobody guesses 256 bits, while a lock on the good key would let anyone behind the same
    address (every visitor, where a proxy stands in front) shut the operator and the shop out.
    """

    def __init__(self, keys: Keys, clock: Callable[[], float], trusted_proxies: Sequence[Network] = ()) -> None:
        self._salt = secrets.token_bytes(32)
        self._admin = self._digest(keys.admin)
        self._site = self._digest(keys.site)
        self._clock = clock
        self._trusted_proxies = trusted_proxies
        self._bad: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def admin(self, request: web.BaseRequest) -> str:
        """Return the actor's name; raises Refused with bad_token or too_many_requests."""
        return self._ask(request, self._admin, "admin")

    def site(self, request: web.BaseRequest) -> str:
        """Return the site's name; raises Refused with bad_token or too_many_requests."""
        return self._ask(request, self._site, "site")

    def is_site(self, request: web.BaseRequest) -> bool:
        """Return whether a call carries the site key; anything else is no offence here."""
        key = bearer(request)
        return key.startswith("stn_site_") and hmac.compare_digest(self._digest(key), self._site)

    def _ask(self, request: web.BaseRequest, expected: bytes, name: str) -> str:
        key = bearer(request)
        if hmac.compare_digest(self._digest(key), expected):
            return name
        if not key:
            raise Refused("bad_token", f"Authorization: Bearer <{name} key> is required")
        self._count(client_address(request, self._trusted_proxies))
        raise Refused("bad_token", f"this is no {name} key of this server")

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

    def _digest(self, key: str) -> bytes:
        return blake2b(key.encode("utf-8", "surrogateescape"), key=self._salt, digest_size=32).digest()


def bearer(request: web.BaseRequest) -> str:
    """Return the key or token of the Authorization header; "" when there is none to be used."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and len(key) <= LONGEST_KEY else ""
