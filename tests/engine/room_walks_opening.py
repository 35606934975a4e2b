"""Walks about opening and starting: the lobby and its draw, settings by state, and a lost tail of the log."""

from collections.abc import Callable

import pytest

from engine import answering
from engine.actor import By, Whom
from engine.errors import Refused
from engine.records import Opened
from engine.settings import settings_from
from tests.engine.room_pair import OPS, Pair
from tests.engine.room_walks import NOBODY, SETTINGS, crowd, in_lobby, opened, waiting
from tests.engine.rooms import SECRET

SCHEDULE = By("schedule", "it is time")


# ---- opening ------------------------------------------------------------------------------------------


def rule_draw_gives_the_numbers() -> Pair:
    pair = in_lobby(max_waiting=None)
    crowd(pair, 6)
    pair.leave("u3")
    pair.remove("u4")
    pair.touch("u5")
    pair.look("u5")
    pair.open()
    pair.join("u7", 7)
    pair.check()
    for _ in range(12):
        pair.draw_step(1)
        pair.check()
    assert sorted(row.number or 0 for row in pair.model.rows) == [0, 0, 1, 2, 3, 4, 7]
    pair.complete(1)
    pair.complete(5)
    pair.complete(6)
    pair.redeem(6, 1, "r1")
    pair.admit(2)
    pair.redeem(2, 1, "r1")
    pair.release(2)
    return pair


def rule_draw_under_way() -> Pair:
    pair = in_lobby(max_waiting=None)
    crowd(pair, 6)
    pair.open()
    pair.draw_step(8)
    pair.check()
    pair.leave("u1")
    pair.transfer("u2", 7)
    pair.remove("u3")
    pair.touch("u4")
    pair.join("u9", 9)
    pair.check()
    pair.commit()
    pair.draw_step(1)
    pair.crash()
    pair.check()
    pair.release(9)
    return pair


def rule_draw_under_way_hears_the_lobby() -> Pair:
    for visible in (True, False):
        pair = in_lobby()
        crowd(pair, 3)
        pair.open()
        pair.join("u9", 9)
        pair.wait(8_000)
        pair.touch("u9")
        pair.touch("u1", visible=visible)
        pair.check()
        pair.finish_draw()
        for ms in (8_000, 8_000 if visible else 8_001):
            pair.wait(ms)
            pair.touch("u9")
        pair.release(9)
        pair.check()
        assert pair.model.rows[0].status == "ready"
        pair.finish()
    return pair


def rule_draw_finished_by_what_needs_it() -> Pair:
    def release(pair: Pair) -> None:
        pair.release(1)

    def first_batch(pair: Pair) -> None:
        pair.wait(10_000)
        pair.tick()

    def admit(pair: Pair) -> None:
        pair.admit("u2")

    for step in (release, first_batch, admit):
        pair = in_lobby()
        crowd(pair, 4)
        pair.open()
        step(pair)
        pair.check()
        assert not pair.model.drawing
    return pair


def rule_draw_is_public_after_all_are_forgotten() -> Pair:
    pair = in_lobby()
    crowd(pair, 4)
    pair.open()
    pair.finish_draw()
    pair.close()
    pair.wait(100_000)
    pair.expire()
    pair.check()
    pair.open()
    pair.join("u1", 1)
    return pair


def rule_draw_with_a_beacon() -> Pair:
    pair = in_lobby("noon", max_waiting=None)
    crowd(pair, 6)
    pair.open()
    pair.check()
    pair.open(beacon="42")
    pair.finish_draw()
    pair.check()
    (record,) = [its for its in pair.venue.outbox.records if isinstance(its, Opened)]
    assert (record.seed, record.beacon, record.count) == (SECRET.hex(), "42", 6)
    return pair


def rule_draw_without_a_beacon_ignores_a_value() -> Pair:
    pair = in_lobby(max_waiting=None)
    crowd(pair, 6)
    pair.open(beacon="42")
    pair.finish_draw()
    return pair


def rule_draw_by_another_secret_is_refused() -> Pair:
    pair = in_lobby()
    crowd(pair, 2)
    with pytest.raises(Refused):
        pair.room.control("open", OPS, pair.now_ms, secret=b"another")
    assert not pair.venue.outbox.records[3:] and answering.draw(pair.room.ledger).seed is None  # type: ignore[union-attr]
    return pair


def rule_draw_not_sooner_than_a_minute_after_a_start() -> Pair:
    pair = in_lobby()
    crowd(pair, 3)
    pair.commit()
    pair.wait(50_000)
    pair.crash()
    pair.wait(59_999)
    pair.open(SCHEDULE)
    pair.check()
    pair.wait(1)
    pair.open(SCHEDULE)
    pair.check()
    pair = in_lobby()
    pair.commit()
    pair.crash()
    pair.open()
    pair.check()
    return pair


def rule_draw_of_a_lobby_that_was_closed() -> Pair:
    pair = in_lobby(max_waiting=None)
    crowd(pair, 4)
    pair.close()
    pair.check()
    pair.join("u9", 9)
    pair.open(SCHEDULE)
    pair.wait(60_000)
    pair.open()
    pair.check()
    pair.close()
    pair.open()
    pair.check()
    pair.lobby()
    return pair


def rule_draw_puts_levels_before_others() -> Pair:
    pair = in_lobby(max_waiting=None, max_active=None)
    for number, level in enumerate((0, 0, 0, 1, 2, 3), 1):
        pair.join(f"u{number}", 100 + number, level=level, word="enqueue")
    pair.open()
    pair.finish_draw()
    pair.check()
    pair.release(4)
    return pair


def rule_lobby_needs_the_setting() -> Pair:
    pair = Pair(**SETTINGS)
    pair.lobby()
    pair.configure(lobby=True)
    pair.lobby()
    pair.lobby()
    return pair


def rule_lobby_holds_its_opening() -> Pair:
    pair = in_lobby(opens_at_ms=500_000)
    pair.configure(NOBODY, opens_at_ms=600_000)
    pair.configure(opens_at_ms=600_000)
    pair.pause(NOBODY)
    pair.pause()
    pair.check()
    pair.pause()
    pair.resume()
    pair.configure(NOBODY, opens_at_ms=700_000)
    return pair


def rule_settings_fixed_by_state() -> Pair:
    """Each setting is changed in each state, by itself."""
    changed: dict[str, object] = {
        "name": "x",
        "queueing": "reject",
        "lobby": True,
        "opens_at_ms": 777_000,
        "closes_at_ms": 999_000,
        "batch_size": 5,
        "batch_interval_s": 7,
        "max_active": 9,
        "max_waiting": 9,
        "admissions_left": 9,
        "safety_margin": 1,
        "session_ttl_s": 30,
        "session_max_s": 60,
        "session_extend": False,
        "exit_grace_s": 30,
        "claim_window_s": 15,
        "claim_max_s": 60,
        "presence_timeout_s": 20,
        "presence_timeout_hidden_s": 60,
        "grace_s": 60,
        "priority_boost": 9,
        "join_policy": "signed",
        "redemption": "offline",
        "return_to_origins": ["https://shop.example"],
        "variants": {"a": 1},
        "page": {"title": "x"},
        "retention_s": 99,
    }
    makers: list[Callable[[], Pair]] = [lambda: Pair(**SETTINGS), in_lobby, waiting, _paused, _closed]
    for stop in (Pair.check, Pair.pause, Pair.close):
        pair = opened(lobby=True)
        stop(pair)
        pair.configure(lobby_opens_at_ms=5_000)
        pair.check()
    for make in makers:
        pair = make()
        changes = changed | {"lobby": not pair.model.settings.lobby}
        for name, value in changes.items():
            pair.configure(OPS, **{name: value})
        pair.configure(lobby=True, lobby_opens_at_ms=5_000)
        pair.configure(return_to="https://shop.example/x")
        pair.check()
        pair.finish()
    return pair


def _paused() -> Pair:
    pair = waiting()
    pair.pause()
    return pair


def _closed() -> Pair:
    pair = waiting()
    pair.close()
    return pair


def rule_event_actions_in_draft() -> Pair:
    pair = Pair(**SETTINGS)
    steps: list[Callable[[], object]] = [pair.resume, pair.pause, pair.tick, pair.expire]
    for step in (*steps, lambda: pair.release(1), lambda: pair.admit("u1")):
        step()
        pair.check()
    pair.remove("u1")
    pair.join("u1", 1)
    pair.tell("soon")
    pair.close()
    pair.check()
    pair.resume()
    pair.pause()
    pair.lobby()
    pair.open()
    pair.check()
    pair.delete(SETTINGS)
    pair = Pair(**SETTINGS)
    pair.delete(SETTINGS)
    pair.tell("")
    pair.configure(NOBODY, batch_size=1)
    return pair


def rule_reasons_are_asked_for_where_people_wait_for_them() -> Pair:
    pair = Pair(**SETTINGS | {"lobby": True})
    pair.lobby(by=NOBODY)
    crowd(pair, 2)
    pair.open(NOBODY)
    pair.finish_draw()
    pair.pause(NOBODY)
    pair.pause()
    pair.resume(NOBODY)
    pair.close(NOBODY)
    pair.close()
    pair.open(NOBODY)
    return pair


def rule_reasons_are_short_enough_to_be_shown() -> Pair:
    pair = waiting()
    room, now_ms, whom = pair.room, pair.now_ms, Whom(user_id="u1")
    at_length = By("ops", "x" * 281)
    for act in (
        lambda: room.configure({"name": "x"}, at_length, now_ms),
        lambda: room.control("pause", at_length, now_ms),
        lambda: room.release(1, at_length, now_ms, manual=True),
        lambda: room.admit(whom, at_length, now_ms),
        lambda: room.remove(whom, at_length, now_ms),
    ):
        with pytest.raises(Refused, match="280"):
            act()
    pair.check()
    pair.pause(By("ops", "x" * 280))
    return pair


def rule_settings_replaced_go_back_to_their_defaults() -> Pair:
    pair = Pair(**SETTINGS)
    assert pair.room.configure({"name": "x"}, OPS, pair.now_ms, replace=True)
    assert not pair.room.configure({"name": "x"}, OPS, pair.now_ms, replace=True)
    assert pair.room.ledger.settings == settings_from({"name": "x"})
    pair.model.event.settings = settings_from({"name": "x"})
    return pair
