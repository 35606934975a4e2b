"""Who acts, and why: what every action of an operator, the site or the pacer carries into its record."""

from msgspec import Struct

from engine.errors import Refused

REASON_LENGTH = 280


class By(Struct, frozen=True, array_like=True, gc=False):
    """Who acts and why: `reason` is shown to visitors (280 characters at most), `note` is for the audit only.

    `request` is the Idempotency-Key where repeating the action must not do it twice.
    """

    actor: str
    reason: str | None = None
    note: str | None = None
    request: str | None = None

    def check(self) -> None:
        """Raise Refused("bad_request") for a reason that is too long to be shown."""
        if self.reason is not None and len(self.reason) > REASON_LENGTH:
            raise Refused("bad_request", f"reason: at most {REASON_LENGTH} characters", field="reason")

    def require_reason(self, what: str) -> None:
        """Raise Refused("bad_request") when what keeps people waiting comes without a reason they may read."""
        if not self.reason:
            raise Refused("bad_request", f"a reason that visitors may read is required to {what}", field="reason")


class Entrant(Struct, frozen=True, array_like=True, gc=False):
    """Who joins, and on what word.

    `proof` is a 64-bit digest of what proves holding the place (0: nothing was shown). `word` is "visitor", "site" (a
    site key, which takes a place over) or "enqueue" (a token signed by the shop: it takes a place over, and makes at
    most one). `size` is how many the place counts under the cap.
    """

    user_id: str
    proof: int = 0
    level: int = 0
    size: int = 1
    word: str = "visitor"


class Holder(Struct, frozen=True, array_like=True, gc=False):
    """Whoever shows a queue token: which place, and of which generation of its tokens."""

    arrival: int
    user_id: str
    generation: int = 0


class Whom(Struct, frozen=True, array_like=True, gc=False):
    """Whose place an operator or the site means; exactly one is given."""

    user_id: str | None = None
    number: int | None = None
    arrival: int | None = None
