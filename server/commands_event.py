"""`stanchion event …`: what an operator does with events, through the admin API of a running server."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

import msgspec
import typer

from engine.errors import NotPermitted, UsageError
from engine.settings import KNOBS, Knob, Settings
from server.admin_client import AdminClient, event_path, read_key
from server.terminal import notes, print_json, print_table

EventId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The event's id.")]
Pairs: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="SETTING=VALUE…", help="Settings, as in batch_size=200.")
]
Url: TypeAlias = Annotated[str, typer.Option("--url", envvar="STANCHION_URL", help="The server (its admin listener).")]
KeyFile: TypeAlias = Annotated[
    Path, typer.Option("--key-file", envvar="STANCHION_ADMIN_KEY_FILE", help="File that holds the admin key.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Reason: TypeAlias = Annotated[str | None, typer.Option(help="Why; visitors may read it.")]
Needed: TypeAlias = Annotated[str, typer.Option("--reason", help="Why; visitors read it.")]
Note: TypeAlias = Annotated[str | None, typer.Option(help="A note for the audit only.")]

URL = "http://127.0.0.1:8080"
KEY_FILE = Path("data/keys/admin.key")
CODES = (69, 77, 78)

app = typer.Typer(
    name="event",
    help="Make, change, open, pause and close events.",
    epilog=notes("stanchion event create sale batch_size=200 --open", *CODES),
    no_args_is_help=True,
)


@app.command("list", epilog=notes("stanchion event list --json", *CODES))
def list_events(url: Url = URL, key_file: KeyFile = KEY_FILE, as_json: Json = False) -> None:
    """List all events."""
    events = client(url, key_file).get("/v1/admin/events")["events"]
    if as_json:
        print_json(events)
        return
    columns = "event_id", "name", "state", "waiting", "released", "rate_per_minute"
    print_table(columns, ([event[column] for column in columns] for event in events))


@app.command(epilog=notes("stanchion event create sale batch_size=200 max_active=1000 --open", *CODES))
def create(
    event_id: EventId,
    settings: Pairs = [],  # noqa: B006
    open_now: Annotated[bool, typer.Option("--open", help="Open it at once.")] = False,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Make an event; it is a draft until it is opened."""
    body = _settings(settings) | why(None, note)
    server = client(url, key_file)
    if server.find(event_path(event_id)) is not None:
        raise NotPermitted(f"event {event_id} exists already; change it with: stanchion event set {event_id} …")
    event = server.put(event_path(event_id), body)
    if open_now:
        event = server.post(event_path(event_id, "open"), why(None, note))
    _show(event, as_json)


@app.command(epilog=notes("stanchion event show sale", *CODES))
def show(event_id: EventId, url: Url = URL, key_file: KeyFile = KEY_FILE, as_json: Json = False) -> None:
    """Show an event with all its settings; those that differ from the default are marked."""
    event = client(url, key_file).get(event_path(event_id))
    if as_json:
        print_json(event)
        return
    defaults = Settings().as_map()
    facts = {name: value for name, value in event.items() if name not in ("settings", "draw")}
    draw = {f"draw: {name}": value for name, value in (event["draw"] or {}).items()}
    print_table(("", ""), (facts | draw).items())
    print_table(
        ("setting", "value", ""),
        ((name, value, "" if defaults.get(name) == value else "changed") for name, value in event["settings"].items()),
    )


@app.command("set", epilog=notes("stanchion event set sale batch_size=50 --reason 'The shop is slow'", *CODES))
def set_settings(
    event_id: EventId,
    settings: Pairs,
    reason: Reason = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Change settings; lowering the rate and moving the opening need a reason."""
    body = _settings(settings) | why(reason, note)
    _show(client(url, key_file).patch(event_path(event_id), body), as_json)


@app.command(epilog=notes("stanchion event lobby sale --beacon 'drand quicknet round 12345678'", *CODES))
def lobby(
    event_id: EventId,
    beacon: Annotated[
        str | None, typer.Option(metavar="NAME", help="A public value nobody can know yet, to mix into the draw.")
    ] = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Open the lobby: whoever comes before the opening has the same chance. Publishes the draw's commitment."""
    body = why(None, note) | ({"beacon": beacon} if beacon is not None else {})
    event = client(url, key_file).post(event_path(event_id, "lobby"), body)
    _show(event, as_json)
    if not as_json:
        print(f"draw {event['draw']['draw_id']} is bound by the commitment {event['draw']['commitment']}")


@app.command("open", epilog=notes("stanchion event open sale", *CODES))
def open_event(
    event_id: EventId,
    beacon: Annotated[
        str | None, typer.Option(metavar="VALUE", help="The value of the beacon that the lobby's draw named.")
    ] = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Open an event and draw its lobby, or open a closed one again."""
    body = why(None, note) | ({"beacon": beacon} if beacon is not None else {})
    _act(url, key_file, event_id, "open", body, as_json)


@app.command(epilog=notes("stanchion event pause sale --reason 'Payment is being repaired'", *CODES))
def pause(
    event_id: EventId,
    reason: Needed,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Pause the batches; everybody keeps their place and others may still join."""
    _act(url, key_file, event_id, "pause", why(reason, note), as_json)


@app.command(epilog=notes("stanchion event resume sale", *CODES))
def resume(
    event_id: EventId, note: Note = None, url: Url = URL, key_file: KeyFile = KEY_FILE, as_json: Json = False
) -> None:
    """Go on after a pause."""
    _act(url, key_file, event_id, "resume", why(None, note), as_json)


@app.command(epilog=notes("stanchion event close sale --reason 'Sold out' --outcome sold_out", *CODES))
def close(
    event_id: EventId,
    reason: Needed,
    outcome: Annotated[str | None, typer.Option(help="How it ended, in a word.")] = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Close an event: nobody joins, nobody is released."""
    body = why(reason, note) | ({"outcome": outcome} if outcome is not None else {})
    _act(url, key_file, event_id, "close", body, as_json)


@app.command(epilog=notes("stanchion event release sale 50 --reason 'Extra seats'", *CODES))
def release(
    event_id: EventId,
    count: Annotated[int, typer.Argument(min=1, help="How many.")],
    reason: Reason = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Release the next in line now: outside the rate, inside the cap."""
    body = {"count": count, **why(reason, note)}
    result = client(url, key_file).post(event_path(event_id, "release"), body)
    if as_json:
        print_json(result)
        return
    limit = f", limited by {result['limited_by']}" if result["limited_by"] else ""
    print(f"released {result['released']}, stepped over {result['stepped_over']}{limit}")


@app.command(epilog=notes("stanchion event message sale 'Doors open at eight'", *CODES))
def message(
    event_id: EventId,
    text: Annotated[str, typer.Argument(help="What everybody in line is told; '' takes it away.")],
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Tell everybody in line something."""
    _act(url, key_file, event_id, "message", {"text": text, **why(None, note)}, as_json)


@app.command(epilog=notes("stanchion event stats sale --json", *CODES))
def stats(event_id: EventId, url: Url = URL, key_file: KeyFile = KEY_FILE, as_json: Json = False) -> None:
    """Show how many are where."""
    found = client(url, key_file).get(event_path(event_id, "stats"))
    if as_json:
        print_json(found)
        return
    counts = found.pop("counts")
    print_table(("", ""), [*found.items(), *((status, count) for status, count in counts.items() if count)])


@app.command(epilog=notes("stanchion event delete rehearsal --yes", *CODES))
def delete(
    event_id: EventId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
) -> None:
    """Delete an event and everybody's place in it. This cannot be undone."""
    server = client(url, key_file)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--yes is required where nobody can be asked")
        typer.confirm(f"Delete event {event_id} and everybody's place in it?", abort=True)
    server.delete(event_path(event_id) + _query(note))
    print(f"event {event_id} is deleted")


# ---- small parts ----------------------------------------------------------------------------------------


def client(url: str, key_file: Path) -> AdminClient:
    """Return a client of the server that a command was told of."""
    return AdminClient(url, read_key(key_file))


def _act(url: str, key_file: Path, event_id: str, action: str, body: Mapping[str, object], as_json: bool) -> None:
    _show(client(url, key_file).post(event_path(event_id, action), body), as_json)


def _show(event: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(event)
    else:
        why = f" ({event['reason']})" if event["reason"] else ""
        print(f"event {event['event_id']} is {event['state']}{why}: {event['waiting']} waiting")


def why(reason: str | None, note: str | None) -> dict[str, object]:
    """Return the members of a body that say why."""
    return {name: value for name, value in (("reason", reason), ("note", note)) if value is not None}


def _query(note: str | None) -> str:
    return "" if note is None else f"?note={quote(note, safe='')}"


def _settings(pairs: list[str]) -> dict[str, object]:
    """Return the settings that `name=value` words name; raises UsageError for a name that is none."""
    settings: dict[str, object] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        knob = KNOBS.get(name)
        if knob is None or not equals:
            known = ", ".join(setting.name for setting in fields(Settings))
            raise UsageError(f"{pair!r} is not SETTING=VALUE; settings are {known}")
        settings[name] = _value(name, knob, text)
    return settings


def _value(name: str, knob: Knob, text: str) -> object:
    """Return what a text means for a setting; the server checks the bounds."""
    if text == "null" and knob.nullable:
        return None
    if knob.kind in ("text", "choice"):
        return text
    if knob.kind == "origins" and not text.startswith("["):
        return [origin for origin in text.split(",") if origin]
    try:
        if name.endswith("_at_ms") and "T" in text:
            return _moment_ms(text)
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{name}={text} cannot be read: {error}") from None


def _moment_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("give the time zone too, as in 2027-01-31T10:00:00+01:00")
    return round(moment.timestamp() * 1000)
