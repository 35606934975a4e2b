"""Keys on disk: `DATA/keys/`, 0700, its files 0600, made whole or not at all, and refused where that is not so.

`ring.json` is the ring: what is needed to sign and to recognise, with a digest in place of every bearer key. The
first admin, site and replication key also stand in `KIND.key`, one line each, for whoever is to show them.

The folder appears under a temporary name first, so a start that is killed leaves no half set behind. A change
writes `ring.json` anew beside the old one and renames it. A new text for `KIND.key` is on the disk as
`KIND.key.next` before the ring speaks of it, and takes its place after; what a kill left of that is read as if it had
been finished, and finished by the next who holds the folder.
"""

import os
import re
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from engine.errors import BadConfiguration, StorageFailed
from engine.settings import is_event_id
from engine.signatures import verifying_keys
from server.key_kinds import IN_FILES, KINDS, ROLES, SIGNING, Key, Secret
from server.key_ring import ENTROPY_BYTES, digest_of, first_keys, new_text

RING = "ring.json"
EARLIER_QUEUE_FILE = "queue.key"
LONGEST_KEY = 256

_KEY_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_SAMPLE = re.compile("changeme|change-me|change_me|example|password|placeholder|abcdefgh|01234567", re.IGNORECASE)
_LEAST_DIFFERENT_BYTES = 16


class _StoredKey(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A key as it stands in ring.json; bytes are base64url."""

    id: str
    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]
    name: str
    created_ms: int
    signs_from_ms: int
    until_ms: int | None = None
    role: Literal[ROLES] | None = None  # type: ignore[valid-type]
    events: list[str] | None = None
    in_file: bool = False
    secret: str | None = None
    digest: str | None = None
    public: str | None = None


class _StoredRing(msgspec.Struct, forbid_unknown_fields=True):
    """The whole of ring.json."""

    format: Literal[1]
    keys: list[_StoredKey]


class KeyFolder:
    """One `DATA/keys/`."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def has_ring(self) -> bool:
        """Return whether keys are there, in whatever form; raises BadConfiguration where others may look at them."""
        if not self.place.is_dir():
            return False
        _check_private(self.place)
        return any((self.place / name).exists() for name in (RING, EARLIER_QUEUE_FILE))

    def is_empty(self) -> bool:
        """Return whether there is no folder, or nothing in it."""
        return not self.place.is_dir() or not any(self.place.iterdir())

    def create(self, now_ms: int) -> None:
        """Make the first keys; raises StorageFailed."""
        texts = {kind: new_text(kind) for kind in IN_FILES}
        with _storage_errors(self.place):
            data = self.place.parent
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{self.place.name}.", dir=data))
            for kind, text in texts.items():
                _write(temporary / f"{kind}.key", f"{text}\n".encode())
            _write(temporary / RING, ring_to_bytes(first_keys(now_ms, texts)))
            _sync_folder(temporary)
            os.rename(temporary, self.place)
            _sync_folder(data)

    def load(self, now_ms: int) -> list[Key]:
        """Return the keys; raises BadConfiguration for what is missing, weak, doubled, or readable by others."""
        _check_private(self.place)
        path = self.place / RING
        if not path.exists() and (self.place / EARLIER_QUEUE_FILE).exists():
            self._take_over(now_ms)
        keys = ring_from_bytes(_content(path), path)
        check_set(path, keys, now_ms)
        return keys

    def texts(self, keys: Sequence[Key]) -> dict[str, str]:
        """Return the keys that stand in files, by kind; raises BadConfiguration where one is not the ring's."""
        return {key.kind: self._text(key) for key in keys if key.in_file}

    def _text(self, key: Key) -> str:
        waiting, path = self._next(key.kind), self.place / f"{key.kind}.key"
        if waiting.exists() and digest_of(waiting.read_text("ascii", "replace").strip()) == key.digest:
            path = waiting
        way_out = f"put it back, or have a new one made: stanchion keys rotate {key.kind} --data {self.place.parent}"
        if not path.exists():
            raise BadConfiguration(f"{path} is missing; {way_out}")
        text = _read_single(path, key.kind)
        if digest_of(text) != key.digest:
            raise BadConfiguration(f"{path} holds a key that is not in {RING}; {way_out}")
        return text

    def save(self, keys: Sequence[Key], key: Key, text: str) -> None:
        """Write all keys, durably and whole; `text` is what `key` is shown as. Raises StorageFailed."""
        with _storage_errors(self.place):
            if key.in_file and text:
                _replace(self._next(key.kind), f"{text}\n".encode())
                _sync_folder(self.place)
            _replace(self.place / RING, ring_to_bytes(keys))
            _sync_folder(self.place)
        self.settle(keys)
        with _storage_errors(self.place):
            in_file = {other.kind for other in keys if other.in_file}
            for kind in IN_FILES:
                if kind not in in_file:
                    (self.place / f"{kind}.key").unlink(missing_ok=True)
            _sync_folder(self.place)

    def install(self, keys: Sequence[Key]) -> None:
        """Write a ring that another server handed on, durably and whole; it brings no texts. Raises StorageFailed."""
        with _storage_errors(self.place):
            self.place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.place.mkdir(mode=0o700, exist_ok=True)
            _replace(self.place / RING, ring_to_bytes(keys))
            _sync_folder(self.place)
            _sync_folder(self.place.parent)

    def digests_in_files(self) -> frozenset[tuple[str, str]]:
        """Return kind and digest of each text that stands in KIND.key; a file that cannot be read holds none."""
        found = set()
        for kind in IN_FILES:
            with suppress(BadConfiguration):
                found.add((kind, digest_of(_read_single(self.place / f"{kind}.key", kind))))
        return frozenset(found)

    def settle(self, keys: Sequence[Key]) -> None:
        """Let a text that waits as `.next` take its place if the ring speaks of it; it is of no use otherwise.

        Only for whoever has locked the data folder: the text may be that of a change under way.
        """
        in_file = {key.kind: key.digest for key in keys if key.in_file}
        with _storage_errors(self.place):
            for waiting in filter(Path.exists, map(self._next, IN_FILES)):
                path = waiting.with_suffix("")
                if digest_of(waiting.read_text("ascii", "replace").strip()) == in_file.get(path.stem):
                    os.rename(waiting, path)
                else:
                    waiting.unlink()
                _sync_folder(self.place)

    def _next(self, kind: str) -> Path:
        return self.place / f"{kind}.key.next"

    def _take_over(self, now_ms: int) -> None:
        """Make a ring out of a folder of the version before rings: its keys stay, the others are new."""
        texts = {kind: _read_single(self.place / f"{kind}.key", kind) for kind in IN_FILES}
        path = self.place / EARLIER_QUEUE_FILE
        since_ms = min(now_ms, path.stat().st_mtime_ns // 1_000_000)
        keys = first_keys(now_ms, texts, [kind for kind in SIGNING if kind != "queue"])
        until_ms = now_ms + KINDS["queue"].overlap_s * 1000
        for index, (key_id, raw) in enumerate(_read_queue(path).items()):
            old = Key(key_id, "queue", "queue", since_ms, since_ms, secret=Secret(raw))
            keys.append(replace(old, signs_from_ms=since_ms - index, until_ms=until_ms) if index else old)
        check_set(path, keys, now_ms)
        self.save(keys, keys[0], "")
        with _storage_errors(self.place):
            path.unlink()
            _sync_folder(self.place)


# ---- the ring as bytes ----------------------------------------------------------------------------------


def ring_to_bytes(keys: Sequence[Key]) -> bytes:
    """Return a ring as it stands in ring.json."""
    stored = [
        _StoredKey(
            key.id,
            key.kind,
            key.name,
            key.created_ms,
            key.signs_from_ms,
            key.until_ms,
            key.role,
            None if key.events is None else list(key.events),
            key.in_file,
            None if key.secret is None else _to_text(key.secret.reveal()),
            key.digest,
            None if key.public is None else _to_text(key.public),
        )
        for key in keys
    ]
    return msgspec.json.format(msgspec.json.encode(_StoredRing(1, stored)), indent=1) + b"\n"


def ring_from_bytes(content: bytes, place: Path | str) -> list[Key]:
    """Return the keys of a ring; `place` is where it was found, for people. Raises BadConfiguration."""
    try:
        ring = msgspec.json.decode(content, type=_StoredRing)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # What msgspec says names the field, never a value of it.
        raise BadConfiguration(f"{place} is no key ring of this version: {error}; put it back from a copy") from None
    return [_key(place, stored) for stored in ring.keys]


def _key(path: Path | str, stored: _StoredKey) -> Key:
    rule, where = KINDS[stored.kind], f"{path}, key {stored.id[:32]!r}"
    wanted = "digest" if rule.is_bearer else "public" if stored.kind == "enqueue" else "secret"
    given = [name for name in ("secret", "digest", "public") if getattr(stored, name) is not None]
    if not _KEY_ID.fullmatch(stored.id) or given != [wanted]:
        raise BadConfiguration(f"{where}: must have an id of its own, and {wanted}, and no other kind of content")
    if stored.digest is not None and not _DIGEST.fullmatch(stored.digest):
        raise BadConfiguration(f"{where}: the digest must be 64 hexadecimal digits")
    if (stored.role is not None) != (stored.kind == "admin") or not all(map(is_event_id, stored.events or ())):
        raise BadConfiguration(f"{where}: role or events are not those of a key of kind {stored.kind}")
    return Key(
        stored.id,
        stored.kind,
        stored.name,
        stored.created_ms,
        stored.signs_from_ms,
        stored.until_ms,
        stored.role,
        None if stored.events is None else tuple(stored.events),
        stored.in_file,
        None if stored.secret is None else Secret(_secret(where, stored.secret)),
        stored.digest,
        None if stored.public is None else _bytes_of(stored.public),
    )


def check_set(path: Path | str, keys: Sequence[Key], now_ms: int) -> None:
    """Refuse a set that lacks a kind, or in which two keys cannot be told apart; raises BadConfiguration."""
    contents = [key.digest or key.public or key.raw() for key in keys]
    if len(set(contents)) < len(keys) or len({key.id for key in keys}) < len(keys):
        raise BadConfiguration(f"{path}: two of the keys are the same")
    going_on = {key.kind for key in keys if key.until_ms is None and key.role in (None, "owner")}
    missing = [kind for kind, rule in KINDS.items() if rule.is_needed and kind not in going_on]
    if missing:
        raise BadConfiguration(f"{path}: no key of kind {', '.join(missing)} goes on; put the file back from a copy")
    doubled = [kind for kind, count in Counter(key.kind for key in keys if key.in_file).items() if count > 1]
    if doubled or any(key.in_file and key.kind not in IN_FILES for key in keys):
        raise BadConfiguration(f"{path}: at most one admin, site and replication key can stand in a file")
    try:
        verifying_keys({key.id: key.public for key in keys if key.public is not None})
    except ValueError as error:
        raise BadConfiguration(f"{path}: {error}") from None


# ---- files ------------------------------------------------------------------------------------------------


def _read_single(path: Path, kind: str) -> str:
    lines, prefix = _lines(path), f"stn_{kind}_"
    if len(lines) != 1 or not lines[0].startswith(prefix):
        raise BadConfiguration(f"{path}: must hold one line that begins with {prefix}")
    _secret(str(path), lines[0].removeprefix(prefix))
    return lines[0]


def _read_queue(path: Path) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for line in _lines(path):
        key_id, _, text = line.partition(" ")
        if not _KEY_ID.fullmatch(key_id) or key_id in found:
            raise BadConfiguration(f"{path}: each line must be an id of its own, a space and a secret")
        found[key_id] = _secret(str(path), text)
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = _content(path).decode("ascii")
    except UnicodeDecodeError:
        raise BadConfiguration(f"{path}: cannot be read: it is not ASCII") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _content(path: Path) -> bytes:
    _check_private(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read: {error.strerror}") from None


def _check_private(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}; put it back from where it was") from None
    if mode & 0o077:
        raise BadConfiguration(f"{path}: others may read or write it; run chmod go= {path}")


def _secret(where: str, text: str) -> bytes:
    """Return the bytes of a secret; refuses what is short, patterned, or copied from a page of samples."""
    raw = _bytes_of(text)
    if not ENTROPY_BYTES <= len(raw) <= LONGEST_KEY // 2:
        raise BadConfiguration(f"{where}: the secret must be at least {ENTROPY_BYTES} random bytes in base64url")
    if len(set(raw)) < _LEAST_DIFFERENT_BYTES or _SAMPLE.search(text):
        raise BadConfiguration(f"{where}: the secret is weak or a sample; take one that this program made")
    return raw


def _bytes_of(text: str) -> bytes:
    """Return what base64url stands for, nothing where it is not base64url."""
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4)) if _BASE64URL.fullmatch(text) else b""
    except Base64Error:
        return b""


def _to_text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _replace(path: Path, content: bytes) -> None:
    """Write a file anew; whoever reads it sees the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    _write(temporary, content)
    os.rename(temporary, path)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"cannot write keys in {folder}: {error.strerror}") from error
