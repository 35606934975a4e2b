"""Whom a follower heard of, kept until its primary is told: presence travels upstream once a second, all together."""

from server.replication.messages import Heard


class Hearing:
    """Visitors heard of since the last word, the newest word of each."""

    def __init__(self) -> None:
        self._events: dict[str, dict[int, bool]] = {}

    def note(self, event_id: str, arrival: int, visible: bool) -> None:
        """Note that somebody was heard of, looking at the page or not."""
        self._events.setdefault(event_id, {})[arrival] = visible

    def take(self) -> list[Heard]:
        """Return what there is to tell, one message for each event, and forget it."""
        events, self._events = self._events, {}
        return [
            Heard(
                event_id,
                [arrival for arrival, is_visible in arrivals.items() if is_visible],
                [arrival for arrival, is_visible in arrivals.items() if not is_visible],
            )
            for event_id, arrivals in events.items()
        ]
