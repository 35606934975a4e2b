"""What a visitor may be called: a user_id, and what a shop signs in its place (`sub`, `group`)."""

import re
from base64 import urlsafe_b64encode
from hashlib import sha256

LONGEST_IDENTITY_BYTES = 128
# Controls, what turns the direction of writing, line and paragraph separators, half characters, no characters.
_UNWELCOME = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]")


def is_identity(text: str) -> bool:
    """Return whether a text may be stored and shown: 1 to 128 bytes of UTF-8 without control characters."""
    if text.isascii():
        return 0 < len(text) <= LONGEST_IDENTITY_BYTES and text.isprintable()
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    return size_bytes <= LONGEST_IDENTITY_BYTES and not _UNWELCOME.search(text)


def subject_of(event_id: str, user_id: str) -> str:
    """Return who a visitor is to others: the same within an event, not to be linked across events; 22 characters.

    Not a secret: who can guess a user_id can compute this.
    """
    return urlsafe_b64encode(sha256(event_id.encode() + b"\0" + user_id.encode()).digest())[:22].decode()
