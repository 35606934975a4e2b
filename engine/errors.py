"""Every error Stanchion raises on purpose: one small tree, each with a stable code.

Two branches. `Refused` is an answer: somebody asked for what cannot be given, and the server turns it
into a problem document with the HTTP status of its code (API.md, "Errors"). The others end the process:
each names the exit code a supervisor sees (sysexits.h).
"""

from collections.abc import Sequence

STATUS_OF_CODE = {
    "bad_request": 400,
    "bad_token": 401,
    "bad_enqueue_token": 401,
    "forbidden": 403,
    "banned": 403,
    "read_only": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "timeout": 408,
    "conflict": 409,
    "not_open": 409,
    "pass_used": 409,
    "at_capacity": 409,
    "not_active": 409,
    "enqueue_token_used": 409,
    "closed": 410,
    "pass_expired": 410,
    "gone": 410,
    "precondition_failed": 412,
    "too_large": 413,
    "uri_too_long": 414,
    "unsupported_media_type": 415,
    "expectation_failed": 417,
    "invalid_settings": 422,
    "too_many_requests": 429,
    "headers_too_large": 431,
    "internal": 500,
    "queue_full": 503,
    "rejecting": 503,
    "storage_full": 503,
    "not_primary": 503,
    "backend_unavailable": 503,
    "overloaded": 503,
}


class StanchionError(Exception):
    """The root of the tree."""

    exit_code = 70


class Refused(StanchionError):
    """A request that is answered with a problem: nothing was changed and nothing was lost.

    `code` is a key of STATUS_OF_CODE, `reason` a stable word on 409 and 410, `field` the part of the
    request at fault, `errors` pairs of (field, problem), `retry_after_s` seconds where a retry helps, `primary_url`
    where to ask instead.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        errors: Sequence[tuple[str, str]] = (),
        retry_after_s: int | None = None,
        primary_url: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = STATUS_OF_CODE[code]
        self.detail = detail
        self.reason = reason
        self.field = field
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.primary_url = primary_url

    def again(self) -> "Refused":
        """Return the same refusal anew, for one more who is told: an error that is raised holds its traceback."""
        return Refused(
            self.code,
            self.detail,
            reason=self.reason,
            field=self.field,
            errors=self.errors,
            retry_after_s=self.retry_after_s,
            primary_url=self.primary_url,
        )


class UsageError(StanchionError):
    """The command line asks for something that makes no sense."""

    exit_code = 64


class Damaged(StanchionError):
    """Stored bytes contradict what was promised; the message says where and what the ways out are."""

    exit_code = 65


class Unreachable(StanchionError):
    """A server that was to be spoken to does not answer."""

    exit_code = 69


class StorageFailed(StanchionError):
    """A write, flush, rename or close of the log failed: memory may be ahead of the disk, so the process ends."""

    exit_code = 74


class Locked(StanchionError):
    """Another process holds the data folder."""

    exit_code = 75


class NotPermitted(StanchionError):
    """A server refused what a command asked of it."""

    exit_code = 77


class BadConfiguration(StanchionError):
    """A setting of the process is out of bounds or in conflict with another."""

    exit_code = 78
