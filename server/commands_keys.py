"""`stanchion keys …`: the keys of a running server, or of a data folder that no server is using.

With `--data` no server and no key is needed, only the folder, which is locked meanwhile: that is how a lost admin
key is replaced. A new key goes to stdout, or with `--out` into a file that only its owner can read; it is shown
this once, and never taken from or put into a command line.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias
from urllib.parse import quote

import msgspec
import typer

from engine.errors import StorageFailed, UsageError
from server import admin_keys, logs
from server.admin_client import AdminClient, read_key
from server.commands_event import KEY_FILE, URL, Json, KeyFile, Note, Url
from server.config import load
from server.key_kinds import KINDS, LISTED, ROLES
from server.key_ring import Change, KeyRing
from server.keys import open_ring
from server.terminal import notes, print_json, print_table
from snapshots.storage import DiskStorage

OFFLINE_ACTOR = "command line"
CODES = (69, 74, 75, 77, 78)
LONGEST_PUBLIC_KEY = 2000

Data: TypeAlias = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", exists=True, file_okay=False, help="Change this folder; no server runs."),
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the new key into a new file (0600), not to stdout.")
]

app = typer.Typer(
    name="keys",
    help="List, make, rotate and revoke keys.",
    epilog=notes("stanchion keys create site --name shop --events sale --out shop.key", *CODES),
    no_args_is_help=True,
)


@app.command("list", epilog=notes("stanchion keys list --json", *CODES))
def list_keys(url: Url = URL, key_file: KeyFile = KEY_FILE, data: Data = None, as_json: Json = False) -> None:
    """List all keys: what each is for and until when it is believed, never what it is."""
    with _desk(url, key_file, data) as desk:
        keys = desk.all()
    if as_json:
        print_json(keys)
        return
    columns = "id", "kind", "name", "role", "events", "state", "created", "until"
    rows = [{**key, "created": _day(key["created_ms"]), "until": _day(key["until_ms"])} for key in keys]
    print_table(columns, ([row[column] for column in columns] for row in rows))


@app.command(epilog=notes("stanchion keys create admin --name night-shift --role operator", *CODES))
def create(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(LISTED)}.")],
    name: Annotated[str, typer.Option(help="Whose key it is; the audit names it.")],
    role: Annotated[str | None, typer.Option(help=f"For admin keys: {', '.join(ROLES)}.")] = None,
    events: Annotated[str | None, typer.Option(help="For site and enqueue keys: event ids, with commas.")] = None,
    public_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For enqueue keys: the shop's public key (base64url, JWK, PEM).")
    ] = None,
    out: Out = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a key, or register the public key of a shop."""
    body = {
        "kind": kind,
        "name": name,
        "role": role,
        "events": None if events is None else [event for event in events.split(",") if event],
        "public_key": None if public_key is None else _read_public_key(public_key),
        "note": note,
    }
    with _place_for(out) as place, _desk(url, key_file, data) as desk:
        _show(desk.create(_said(body)), place, as_json)


@app.command(epilog=notes("stanchion keys rotate queue", *CODES))
def rotate(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The id of a key, or a kind of which there is one.")],
    overlap_s: Annotated[
        int | None, typer.Option(min=0, help="Seconds the old key is still believed; longer than its work lives.")
    ] = None,
    out: Out = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make the successor of a key. Nobody loses a place, a pass or a session by it: the old key ends later."""
    body = {"kind" if key in KINDS else "id": key, "overlap_s": overlap_s, "note": note}
    with _place_for(out) as place, _desk(url, key_file, data) as desk:
        _show(desk.rotate(_said(body)), place, as_json)


@app.command(epilog=notes("stanchion keys revoke site-1a2b3c4d --yes", *CODES))
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the key.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    data: Data = None,
) -> None:
    """End a key at once, with everything it signed. This cannot be undone."""
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes is required where nobody can be asked")
        typer.confirm(f"End key {key_id} at once, with everything it signed?", abort=True)
    with _desk(url, key_file, data) as desk:
        desk.revoke(key_id, note)
    print(f"key {key_id} is revoked")


# ---- a server, or a folder ------------------------------------------------------------------------------


class _Desk(Protocol):
    """Where keys are listed and changed; answers are those of the admin API."""

    def all(self) -> list[Mapping[str, Any]]: ...
    def create(self, body: Mapping[str, object]) -> Mapping[str, Any]: ...
    def rotate(self, body: Mapping[str, object]) -> Mapping[str, Any]: ...
    def revoke(self, key_id: str, note: str | None) -> None: ...


class _Server:
    """The keys of a running server."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def all(self) -> list[Mapping[str, Any]]:
        return self._client.get(admin_keys.PATH)["keys"]  # type: ignore[no-any-return]

    def create(self, body: Mapping[str, object]) -> Mapping[str, Any]:
        return self._client.post(admin_keys.PATH, body)  # type: ignore[no-any-return]

    def rotate(self, body: Mapping[str, object]) -> Mapping[str, Any]:
        return self._client.post(f"{admin_keys.PATH}/rotate", body)  # type: ignore[no-any-return]

    def revoke(self, key_id: str, note: str | None) -> None:
        said = "" if note is None else f"&note={quote(note, safe='')}"
        self._client.delete(f"{admin_keys.PATH}?id={quote(key_id, safe='')}{said}")


class _Folder:
    """The keys of a data folder that this process has locked."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def all(self) -> list[Mapping[str, Any]]:
        return [msgspec.to_builtins(facts) for facts in admin_keys.all_facts(self._ring)]

    def create(self, body: Mapping[str, object]) -> Mapping[str, Any]:
        request = _request(body, admin_keys.NewKeyRequest)
        return self._made(admin_keys.creation(self._ring, request), request.note)

    def rotate(self, body: Mapping[str, object]) -> Mapping[str, Any]:
        request = _request(body, admin_keys.RotateRequest)
        return self._made(admin_keys.rotation(self._ring, request), request.note)

    def revoke(self, key_id: str, note: str | None) -> None:
        self._commit(self._ring.revocation(key_id), note)

    def _made(self, change: Change, note: str | None) -> Mapping[str, Any]:
        self._commit(change, note)
        answer: Mapping[str, Any] = msgspec.to_builtins(admin_keys.new_key_answer(self._ring, change))
        return answer

    def _commit(self, change: Change, note: str | None) -> None:
        self._ring.commit(change)
        admin_keys.tell_change(change, OFFLINE_ACTOR, note)


@contextmanager
def _desk(url: str, key_file: Path, data: Path | None) -> Iterator[_Desk]:
    """Give the keys of a server, or those of a folder, which is locked meanwhile."""
    if data is None:
        yield _Server(AdminClient(url, read_key(key_file)))
        return
    logs.configure(load({}).config)
    storage = DiskStorage(data)
    storage.lock()
    try:
        yield _Folder(open_ring(data, _wall_ms))
    finally:
        storage.unlock()


# ---- small parts ----------------------------------------------------------------------------------------


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class _Place:
    """Where a new key goes: a new file of this path, or stdout where there is none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.is_used = False

    def put(self, text: str) -> None:
        """Write the key."""
        if self.path is None:
            print(text)
            return
        try:
            with self.path.open("w", encoding="ascii") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            detail = f"{self.path}: {error.strerror}; the key was made and is lost: rotate it"
            raise StorageFailed(detail) from error
        self.is_used = True


@contextmanager
def _place_for(out: Path | None) -> Iterator[_Place]:
    """Give a place for a new key; a file is made before there is a key, so that none is made in vain."""
    place = _Place(out)
    if out is not None:
        try:
            os.close(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise UsageError(f"--out {out}: {error.strerror}") from None
    try:
        yield place
    finally:
        if out is not None and not place.is_used:
            with suppress(OSError):
                out.unlink()


def _show(answer: Mapping[str, Any], place: _Place, as_json: bool) -> None:
    """Tell what was made, and put the key in its place."""
    key, secret = answer["key"], answer["secret"]
    in_json = as_json and place.path is None
    if as_json:
        print_json({"key": key, "secret": secret if in_json else None})
    else:
        at = f" It is also in {key['file']} of the server's keys." if key["file"] else ""
        shown = f" is shown this once.{at}" if secret else f" is {key['state']}."
        print(f"{key['kind']} key {key['name']} ({key['id']}){shown}")
    if secret and not in_json:
        place.put(secret)


def _said(body: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value is not None}


def _request(body: Mapping[str, object], into: type[Any]) -> Any:
    try:
        return msgspec.convert(body, into)
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None


def _read_public_key(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")[:LONGEST_PUBLIC_KEY].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'it is not ASCII'}") from None


def _day(moment_ms: int | None) -> str | None:
    if moment_ms is None:
        return None
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(" ", "minutes").removesuffix("+00:00") + "Z"
