"""The benches run: the cheap ones as CI runs them, and what judges figures and frames by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cases.crowd import check_order
from bench.cases.push import check_frames
from bench.outcome import BenchFailed, Outcome, median_ratio
from bench.report import as_json, number
from bench.sockets import Collected, payloads_of
from bench.targets import TARGETS, missed
from server.audience import text_frame
from server.push import PING_FRAME

LIMIT_S = 50.0
PROMISED = {"bench", "quick", "seconds", "machine", "targets", "figures", "rounds", "notes", "profile"}


@pytest.mark.slow
def test_quick_benches_run_and_write_what_they_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "line", "wal", "--quick", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result["bench"] for result in results] == ["line", "wal"]
    for result in results:
        assert set(result) == PROMISED
        assert {"date", "processor", "cores", "kernel", "python", "libraries"} <= set(result["machine"])
        assert all({"name", "value", "unit", "floor", "floor_name"} == set(figure) for figure in result["figures"])
        assert {target["verdict"] for target in result["targets"].values()} <= {
            "not judged at this size",
            "not measured",
        }
        assert json.loads((tmp_path / f"{result['bench']}.json").read_text()) == result
        assert (tmp_path / f"{result['bench']}.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_unknown_bench_is_refused_by_name() -> None:
    command = [sys.executable, "-m", "bench", "lines"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert "there is no bench named lines" in done.stderr


def test_a_target_that_is_not_reached_says_what_was_measured_instead() -> None:
    target = TARGETS["http.join"]
    assert target.verdict(0.95, quick=False) == "reached"
    assert target.verdict(0.81, quick=False) == "NOT REACHED: 0.81 instead of 0.95"
    assert target.verdict(0.81, quick=True) == "not judged at this size"
    assert TARGETS["line.rank"].verdict(3.1, quick=False).startswith("NOT REACHED")
    assert missed("line", {"line.rank": 3.1}, quick=False) == ["line.rank"]
    assert missed("line", {"line.rank": 3.1}, quick=True) == []


def test_a_target_that_nothing_was_measured_for_is_not_taken_for_reached() -> None:
    result = as_json("line", Outcome(), quick=False, seconds=1.0)
    assert result["targets"]["line.rank"]["verdict"] == "not measured"


def test_a_median_of_ratios_pairs_what_was_measured_side_by_side() -> None:
    assert median_ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0
    assert [number(value) for value in (12345.6, 12.34, 0.1234)] == ["12,346", "12.3", "0.123"]


def place(position: int, version: int) -> bytes:
    frame = {"type": "place", "position": position, "ahead": position - 1, "version": version}
    return text_frame(json.dumps(frame).encode())


def ready(version: int) -> bytes:
    return text_frame(json.dumps({"type": "ready", "version": version}).encode())


def round_of(*chunks: tuple[int, bytes]) -> Collected:
    return Collected([owner for owner, _ in chunks], [0] * len(chunks), [chunk for _, chunk in chunks])


TOTALS = [(0, 0), (7, 1), (9, 2)]
NUMBERS = [2, 1, 3]


def test_exact_frames_pass_with_pings_among_them() -> None:
    first = round_of((1, ready(7)), (0, PING_FRAME + place(1, 7)), (2, place(2, 8)))
    second = round_of((0, ready(9)), (2, place(1, 9)))
    check_frames(NUMBERS, [first, second], TOTALS)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([(1, ready(7)), (0, place(1, 7)), (2, place(3, 7))], id="a false position"),
        pytest.param([(1, ready(7)), (0, place(1, 7))], id="somebody left out"),
        pytest.param([(1, ready(7)), (0, place(1, 7)), (2, place(2, 7) * 2)], id="told twice"),
        pytest.param([(0, place(1, 7)), (2, place(2, 7))], id="the released not told"),
        pytest.param([(1, ready(7)), (0, ready(7)), (2, place(2, 7))], id="somebody else told they are ready"),
    ],
)
def test_any_frame_that_is_not_exact_fails_the_bench(chunks: list[tuple[int, bytes]]) -> None:
    with pytest.raises(BenchFailed):
        check_frames(NUMBERS, [round_of(*chunks)], TOTALS[:2])


def test_frames_are_cut_out_of_a_stream() -> None:
    long = b"x" * 300
    assert payloads_of(text_frame(b"a") + PING_FRAME + text_frame(long)) == [b"a", long]
    assert payloads_of(text_frame(long)[:-1]) == []


def test_an_order_that_overtakes_fails_the_bench() -> None:
    check_order([1, 2, 3], [0.0, 0.1, 2.0], [1.0, 1.1, 3.0])
    check_order([2, 1], [0.0, 0.1], [1.0, 1.1])  # on their way at the same time: either order is right
    with pytest.raises(BenchFailed):
        check_order([2, 1], [0.0, 1.5], [1.0, 2.0])
