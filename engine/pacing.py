"""How many may enter now: pure functions of settings, state and `now_ms`.

Two limits, both hard. The rate: one batch of at most `batch_size` every `batch_interval_s`, the first one
an interval after opening (or after a restart, when nobody knows how late the last batch really left).
The cap: ready + active never above `max_active` − `safety_margin` by a release. An unused allowance is lost and a
late tick is not caught up: the next tick counts from the moment the last one really ran, so that no window
of `batch_interval_s` ever holds more than `batch_size` automatic releases.
"""

from typing import NamedTuple

from engine.settings import Settings

SLICE = 1_000
UNLIMITED = 2**62
PASSTHROUGH_INTERVAL_MS = 250


class Allowance(NamedTuple):
    """How many visitors may be released, and what kept it that low: rate, capacity or line."""

    visitors: int
    limited_by: str


def free_slots(settings: Settings, inside: int) -> int:
    """Return how many slots a release may still fill; `inside` counts ready + active."""
    if settings.max_active is None:
        return UNLIMITED
    return max(0, settings.max_active - settings.safety_margin - inside)


def automatic(settings: Settings, inside: int, waiting: int) -> Allowance:
    """Return the size of the batch that is due now."""
    rate = UNLIMITED if settings.queueing == "passthrough" else settings.batch_size
    return _least((waiting, "line"), (free_slots(settings, inside), "capacity"), (rate, "rate"))


def _least(*limits: tuple[int, str]) -> Allowance:
    """Return the lowest limit, the first named where several are equal."""
    return Allowance(*min(limits, key=lambda limit: limit[0]))


def next_due_ms(settings: Settings, base_ms: int) -> int:
    """Return when the next batch is due, `base_ms` being the last tick, the opening or the start."""
    interval_ms = PASSTHROUGH_INTERVAL_MS if settings.queueing == "passthrough" else settings.batch_interval_s * 1000
    return base_ms + interval_ms
