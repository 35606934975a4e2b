"""`stanchion event visitor|visitors|admit|remove|fairness`: what an operator does about one visitor.

They stand among the other commands about events (`commands_event`) and use the same options.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlencode

import typer

from engine.errors import UsageError
from engine.register import STATUSES
from server.admin_client import event_path
from server.commands_event import CODES, KEY_FILE, URL, EventId, Json, KeyFile, Needed, Note, Url, client, why
from server.terminal import notes, print_json, print_table

UserId: TypeAlias = Annotated[str | None, typer.Option("--user-id", help="The visitor, by user_id.")]
Number: TypeAlias = Annotated[int | None, typer.Option("--number", min=1, help="The visitor, by queue number.")]
Arrival: TypeAlias = Annotated[int | None, typer.Option("--arrival", min=1, help="The visitor, by arrival.")]
Status: TypeAlias = Annotated[
    str | None, typer.Option("--status", metavar="STATUS", help=f"One of {', '.join(STATUSES[1:])}.")
]


def visitor(
    event_id: EventId,
    user_id: UserId = None,
    number: Number = None,
    arrival: Arrival = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Show one visitor's place, and in words everything that happened to it."""
    query = urlencode(_whom(user_id, number, arrival))
    found = client(url, key_file).get(event_path(event_id, "visitors") + f"?{query}")
    if as_json:
        print_json(found)
        return
    print_table(("", ""), found["place"].items())
    columns = "when (UTC)", "LSN", "what"
    print_table(columns, ((_moment(entry), entry["lsn"], entry["text"]) for entry in found["timeline"]))


def visitors(
    event_id: EventId,
    status: Status = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    after: Annotated[int, typer.Option(min=0, help="Begin behind this arrival.")] = 0,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """List places in the order of joining, a page at a time."""
    if status is not None and status not in STATUSES[1:]:
        raise UsageError(f"--status is one of {', '.join(STATUSES[1:])}, not {status!r}")
    query = {"limit": limit, "after": after} | ({} if status is None else {"status": status})
    found = client(url, key_file).get(event_path(event_id, "visitors") + f"?{urlencode(query)}")
    if as_json:
        print_json(found)
        return
    columns = "arrival", "number", "status", "cause", "position", "user_id"
    print_table(columns, ([place[column] for column in columns] for place in found["visitors"]))
    if found["next"] is not None:
        print(f"There are more: --after {found['next']}")


def admit(
    event_id: EventId,
    reason: Needed,
    user_id: UserId = None,
    number: Number = None,
    arrival: Arrival = None,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Let one visitor in now, ahead of the others: outside the rate, inside the cap."""
    body = _whom(user_id, number, arrival) | why(reason, note)
    _show(client(url, key_file).post(event_path(event_id, "admit"), body), as_json)


def remove(
    event_id: EventId,
    reason: Needed,
    user_id: UserId = None,
    number: Number = None,
    arrival: Arrival = None,
    ban: Annotated[bool, typer.Option("--ban", help="They may not join this event again.")] = False,
    note: Note = None,
    url: Url = URL,
    key_file: KeyFile = KEY_FILE,
    as_json: Json = False,
) -> None:
    """Take a place away for good, and with it the pass or the session."""
    body = _whom(user_id, number, arrival) | why(reason, note) | {"ban": ban}
    _show(client(url, key_file).post(event_path(event_id, "remove"), body), as_json)


def fairness(event_id: EventId, url: Url = URL, key_file: KeyFile = KEY_FILE, as_json: Json = False) -> None:
    """Show how fair the line has been: inversions, overshoot, turns not taken."""
    found = client(url, key_file).get(event_path(event_id, "fairness"))
    if as_json:
        print_json(found)
        return
    counted = {name: found[name] for name in ("released", "admitted", "inversions", "overshoot", "peak_inside")}
    for group in ("overtaken", "skipped"):
        counted |= {f"{group}: {name}": count for name, count in found[group].items() if name != "unexplained"}
    print_table(("", "count", "what it means"), ((name, count, MEANING[name]) for name, count in counted.items()))


# What each line of the fairness table means.
MEANING: Mapping[str, str] = MappingProxyType(
    {
        "released": "How many were let in, by the rate and by hand.",
        "admitted": "How many an operator let in ahead of the others, one by one and with a reason.",
        "inversions": "Let in by the rate after a later number of their level, unexplained: 0 by rule.",
        "overshoot": "The most that a release took the number inside above the cap: 0 by rule.",
        "peak_inside": "The most that were inside right after a release.",
        "overtaken: returned": "Let in after later numbers because they were away at their turn and came back.",
        "overtaken: readmitted": "Let in after later numbers because their place was lost with a part of the log.",
        "skipped: absent": "Turns that went by because nobody had been heard of within the presence timeout.",
        "skipped: unclaimed": "Turns that were not claimed in time; each got one more turn.",
        "skipped: removed": "Places that an operator took away before their turn.",
        "skipped: left": "Places that visitors gave up before their turn.",
    }
)


# ---- small parts ----------------------------------------------------------------------------------------


def _whom(user_id: str | None, number: int | None, arrival: int | None) -> dict[str, object]:
    given = {"user_id": user_id, "number": number, "arrival": arrival}
    named: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise UsageError("name the visitor by exactly one of --user-id, --number and --arrival")
    if user_id is not None and not user_id.isprintable():
        raise UsageError("--user-id holds what no user_id can")
    return named


def _show(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    place = answer["place"]
    number = "no number yet" if place["number"] is None else f"number {place['number']}"
    print(f"arrival {place['arrival']}, {number}, is {place['status']}")


def _moment(entry: Mapping[str, Any]) -> str:
    """Return when something happened by the clock on the wall, else by that of the records."""
    at_ms = entry["at_ms"] if entry["wall_ms"] is None else entry["wall_ms"]
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


_EXAMPLES = (
    (visitor, "stanchion event visitor sale --number 8231"),
    (visitors, "stanchion event visitors sale --status parked --limit 20"),
    (admit, "stanchion event admit sale --user-id u1 --reason 'Was charged twice'"),
    (remove, "stanchion event remove sale --number 17 --reason 'A robot' --ban"),
    (fairness, "stanchion event fairness sale --json"),
)


def add_to(events: typer.Typer) -> None:
    """Put these commands among those about events."""
    for command, example in _EXAMPLES:
        events.command(epilog=notes(example, *CODES))(command)
