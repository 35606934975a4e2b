"""Presence travels upstream together: the newest word of each visitor, once."""

from server.replication.hearing import Hearing
from server.replication.messages import Heard


def test_the_newest_word_of_each_visitor_is_told_once_for_each_event() -> None:
    hearing = Hearing()
    for event_id, arrival, visible in (("e1", 1, True), ("e1", 2, True), ("e2", 1, False), ("e1", 1, False)):
        hearing.note(event_id, arrival, visible)
    assert hearing.take() == [Heard("e1", [2], [1]), Heard("e2", [], [1])]
    assert hearing.take() == []
