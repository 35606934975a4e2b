"""Who acts, and why: what every action of an operator, the site or the pacer carries into its record."""

from typing import NamedTuple

from engine.errors import Refused

REASON_LENGTH = 280


class By(NamedTuple):
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
