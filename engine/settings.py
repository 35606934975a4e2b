"""Event settings: every knob, with its type, default, bounds and the relations between knobs.

One table, KNOBS, says all there is to know about a knob; `settings_from` is the only way to a `Settings`,
checks bounds and relations together and reports every problem at once. Names and defaults are API.md's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from engine.errors import Refused

MAX_MS = 2**53 - 1
MAP_DEPTH = 8
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_EVENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def is_event_id(text: str) -> bool:
    """Return whether a text may name an event: lower-case letters, digits, `_` and `-`, 64 at most."""
    return _EVENT_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one event; units are in the names. Made by `settings_from` only."""

    name: str = ""
    queueing: str = "fifo"
    lobby: bool = False
    lobby_opens_at_ms: int | None = None
    opens_at_ms: int | None = None
    closes_at_ms: int | None = None
    batch_size: int = 100
    batch_interval_s: int = 10
    max_active: int | None = None
    max_waiting: int | None = None
    admissions_left: int | None = None
    safety_margin: int = 0
    session_ttl_s: int = 600
    session_max_s: int = 3600
    session_extend: bool = True
    exit_grace_s: int = 300
    claim_window_s: int = 120
    claim_max_s: int = 1200
    presence_timeout_s: int = 60
    presence_timeout_hidden_s: int = 300
    grace_s: int = 600
    priority_boost: int = 1000
    join_policy: str = "open"
    redemption: str = "redeem"
    return_to: str | None = None
    return_to_origins: Sequence[str] = ()
    variants: Mapping[str, object] = field(default_factory=dict)
    page: Mapping[str, object] = field(default_factory=dict)
    retention_s: int = 2_592_000

    def as_map(self) -> dict[str, object]:
        """Return the settings as plain JSON-like values, in the order of KNOBS; maps in it are not to be changed."""
        plain = {name: getattr(self, name) for name in KNOBS}
        plain["return_to_origins"] = list(self.return_to_origins)
        return plain


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting: `kind` int, bool, text, choice, origins or map; `low` and `high` bound ints and lengths."""

    kind: str
    low: int = 0
    high: int = 0
    nullable: bool = False
    choices: tuple[str, ...] = ()


def _moment() -> Knob:
    return Knob("int", 0, MAX_MS, nullable=True)


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "name": Knob("text", 0, 200),
        "queueing": Knob("choice", choices=("fifo", "passthrough", "reject")),
        "lobby": Knob("bool"),
        "lobby_opens_at_ms": _moment(),
        "opens_at_ms": _moment(),
        "closes_at_ms": _moment(),
        "batch_size": Knob("int", 1, 1_000_000),
        "batch_interval_s": Knob("int", 1, 3600),
        "max_active": Knob("int", 1, 100_000_000, nullable=True),
        "max_waiting": Knob("int", 1, 100_000_000, nullable=True),
        "admissions_left": Knob("int", 0, 100_000_000, nullable=True),
        "safety_margin": Knob("int", 0, 1_000_000),
        "session_ttl_s": Knob("int", 10, 86_400),
        "session_max_s": Knob("int", 10, 604_800),
        "session_extend": Knob("bool"),
        "exit_grace_s": Knob("int", 0, 86_400),
        "claim_window_s": Knob("int", 10, 86_400),
        "claim_max_s": Knob("int", 10, 86_400),
        "presence_timeout_s": Knob("int", 15, 3600),
        "presence_timeout_hidden_s": Knob("int", 15, 86_400),
        "grace_s": Knob("int", 0, 86_400),
        "priority_boost": Knob("int", 0, 1_000_000),
        "join_policy": Knob("choice", choices=("open", "signed")),
        "redemption": Knob("choice", choices=("redeem", "offline")),
        "return_to": Knob("text", 1, 2048, nullable=True),
        "return_to_origins": Knob("origins", 0, 32),
        "variants": Knob("map", 0, 32),
        "page": Knob("map", 0, 64),
        "retention_s": Knob("int", 0, 315_360_000),
    }
)

_MESSAGE_OF_KIND: Mapping[str, Callable[[Knob], str]] = MappingProxyType(
    {
        "int": lambda knob: f"must be a whole number from {knob.low} to {knob.high}",
        "bool": lambda _: "must be true or false",
        "text": lambda knob: f"must be a text of {knob.low} to {knob.high} characters without control characters",
        "choice": lambda knob: f"must be one of {', '.join(knob.choices)}",
        "origins": lambda knob: f"must be a list of at most {knob.high} origins such as https://shop.example",
        "map": lambda knob: (
            f"must be an object with at most {knob.high} members, nested at most {MAP_DEPTH} deep, "
            "with whole numbers up to 2^53"
        ),
    }
)


def _is_text(knob: Knob, value: object) -> bool:
    return isinstance(value, str) and knob.low <= len(value) <= knob.high and not re.search(r"[\x00-\x1f\x7f]", value)


def _is_origins(knob: Knob, value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > knob.high:
        return False
    return all(isinstance(item, str) and _ORIGIN.fullmatch(item) for item in value)


def _is_plain(value: object, depth: int) -> bool:
    """Return whether a log and any JSON parser could keep this as it is: not too deep, and numbers exact."""
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(name, str) and _is_plain(part, depth - 1) for name, part in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(part, depth - 1) for part in value)
    return value is None or isinstance(value, str | float) or (isinstance(value, int) and -MAX_MS <= value <= MAX_MS)


_TEST_OF_KIND: Mapping[str, Callable[[Knob, object], bool]] = MappingProxyType(
    {
        "int": lambda knob, value: type(value) is int and knob.low <= value <= knob.high,
        "bool": lambda _, value: isinstance(value, bool),
        "text": _is_text,
        "choice": lambda knob, value: value in knob.choices,
        "origins": _is_origins,
        "map": lambda knob, value: (
            isinstance(value, Mapping) and len(value) <= knob.high and _is_plain(value, MAP_DEPTH)
        ),
    }
)

# Each relation: the field to name, whether it holds, and what to say when it does not.
RELATIONS: tuple[tuple[str, Callable[[Settings], bool], str], ...] = (
    ("session_ttl_s", lambda s: s.session_ttl_s <= s.session_max_s, "must not exceed session_max_s"),
    ("claim_window_s", lambda s: s.claim_window_s <= s.claim_max_s, "must not exceed claim_max_s"),
    (
        "presence_timeout_s",
        lambda s: s.presence_timeout_s <= s.presence_timeout_hidden_s,
        "must not exceed presence_timeout_hidden_s",
    ),
    (
        "safety_margin",
        lambda s: s.safety_margin == 0 or (s.max_active is not None and s.safety_margin < s.max_active),
        "needs max_active and must be below it",
    ),
    (
        "closes_at_ms",
        lambda s: s.closes_at_ms is None or s.opens_at_ms is None or s.opens_at_ms < s.closes_at_ms,
        "must be after opens_at_ms",
    ),
    (
        "lobby_opens_at_ms",
        lambda s: s.lobby_opens_at_ms is None or s.opens_at_ms is None or s.lobby_opens_at_ms < s.opens_at_ms,
        "must be before opens_at_ms",
    ),
    ("lobby_opens_at_ms", lambda s: s.lobby_opens_at_ms is None or s.lobby, "needs lobby to be true"),
    (
        "return_to",
        lambda s: s.return_to is None or _origin_of(s.return_to) in s.return_to_origins,
        "must be an http or https URL on one of return_to_origins",
    ),
)


def _origin_of(url: str) -> str | None:
    match = _ORIGIN.match(url)
    return match.group() if match and url[match.end() :][:1] in ("", "/", "?", "#") else None


def settings_from(changes: Mapping[str, object], base: Settings | None = None) -> Settings:
    """Return `base` (the defaults when None) with `changes` merged in.

    Raises Refused("invalid_settings") with one (field, problem) pair for everything that is wrong.
    """
    errors: list[tuple[str, str]] = []
    for name, value in changes.items():
        knob = KNOBS.get(name)
        if knob is None:
            errors.append((str(name)[:100], "is not a setting"))
        elif not (value is None and knob.nullable) and not (_TEST_OF_KIND[knob.kind](knob, value)):
            allowed = _MESSAGE_OF_KIND[knob.kind](knob)
            errors.append((name, f"{allowed}, or null" if knob.nullable else allowed))
    if not errors:
        merged = (base or Settings()).as_map() | dict(changes)
        merged["return_to_origins"] = tuple(merged["return_to_origins"])  # type: ignore[arg-type]
        settings = Settings(**{knob.name: merged[knob.name] for knob in fields(Settings)})  # type: ignore[arg-type]
        errors = [(name, problem) for name, holds, problem in RELATIONS if not holds(settings)]
        if not errors:
            return settings
    raise Refused("invalid_settings", "; ".join(f"{name} {problem}" for name, problem in errors), errors=errors)
