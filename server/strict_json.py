"""JSON bodies, decoded strictly: types, unknown names, NaN, depth and repeated names are all refused.

msgspec does nearly all of it at decoding speed. It lets a repeated name pass (the last one wins), which two
parsers in a chain may read differently; that is looked for where there is more than one name at all.
"""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec

from engine.errors import Refused

T = TypeVar("T")
_PATH = re.compile(r"`\$\.?([^`]*)`")
_NAMED_FIELD = re.compile(r"(?:unknown|required) field `([^`]*)`")


def decode_strictly(raw: bytes, into: type[T]) -> T:
    """Return the body as its type; raises Refused("bad_request") that names the field at fault."""
    try:
        if raw.count(b":") > 1:
            json.loads(raw, object_pairs_hook=_refuse_repeated)
        decoded: T = _decoder(into).decode(raw)  # type: ignore[arg-type]
        return decoded
    except msgspec.ValidationError as error:
        raise Refused("bad_request", str(error), field=_field(str(error))) from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Refused("bad_request", "the body is not well-formed JSON in UTF-8", field="body") from None


@cache
def _decoder(into: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(into)


def _refuse_repeated(pairs: Sequence[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise Refused("bad_request", f"the body names {name[:100]!r} twice", field=name[:100])
        seen.add(name)


def _field(message: str) -> str:
    """Return the field an error message of msgspec speaks of."""
    found = _NAMED_FIELD.search(message) or _PATH.search(message)
    return found.group(1) if found else "body"
