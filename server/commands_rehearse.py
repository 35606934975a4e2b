"""`stanchion rehearse --kill-primary`: the failover drill, on a pair of its own, so that nothing real is touched.

A primary, a standby and a witness are started on this machine; while visitors join at a steady pace the primary is
killed, the standby takes over, the killed one comes back as its follower, and so on. At the end the log that is left
is held against what everybody was answered.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import typer

from engine.errors import UsageError
from server.rehearsal_joins import Crowd, Join, Verdict, judge
from server.rehearsal_pair import Pair
from server.terminal import bar, notes, print_json, print_table

EVENT = "rehearsal"
SETTINGS = {"batch_size": 1, "batch_interval_s": 3600}
BEFORE_KILL_S = 2.0
AFTER_RECOVERY_S = 1.0
RECOVERY_LIMIT_S = 30.0
LOOK_S = 0.01
SHOW_S = 0.25


class Mode(StrEnum):
    """What an answer of the primary waits for."""

    SYNC = "sync"
    ASYNC = "async"


def rehearse(
    kill_primary: Annotated[
        bool, typer.Option("--kill-primary", help="Kill the primary of a pair that is started for it.")
    ] = False,
    mode: Annotated[
        Mode, typer.Option(help="Replication of the pair; in async the standby is told to lead.")
    ] = Mode.SYNC,
    joins_per_s: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Joins a second meanwhile.")] = 200,
    kills: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How often the primary is killed.")] = 1,
    witness: Annotated[
        str | None,
        typer.Option(metavar="URL", help="postgresql://… of a witness, for sync; a lock on this machine by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> int:
    """Rehearse the loss of the primary: how long until somebody answers again, and what became of every join.

    It runs on two processes of its own in a temporary folder and touches nothing else. Exit code 1: something that was
    promised was not kept.
    """
    if not kill_primary:
        raise UsageError("say what is to be rehearsed: --kill-primary")
    if witness is not None and mode is Mode.ASYNC:
        raise UsageError("--witness goes with --mode sync: in async nobody takes over unless told")
    with bar("killing the primary") as shown, tempfile.TemporaryDirectory(prefix="stanchion-rehearsal-") as folder:
        told = asyncio.run(drill(Path(folder), mode.value, joins_per_s, kills, witness, shown))
    if as_json:
        print_json(told)
    else:
        print_table(("", ""), _lines(told))
    return 0 if told["passed"] else 1


class _Steps:
    """How far the drill is; shown again and again, so that a bar moves although a step takes seconds."""

    def __init__(self, kills: int, shown: Callable[[int, int], None]) -> None:
        self._done, self._total, self._shown = 0, 1 + 3 * kills, shown

    def next(self) -> None:
        """Note that a step is done."""
        self._done += 1

    async def show(self) -> None:
        """Show it until cancelled."""
        while True:
            self._shown(self._done, self._total)
            await asyncio.sleep(SHOW_S)


async def drill(
    folder: Path, mode: str, joins_per_s: int, kills: int, witness: str | None, shown: Callable[[int, int], None]
) -> dict[str, Any]:
    """Run the drill and return what it came to; `shown` is told how many steps of how many are done."""
    if mode == "sync" and witness is None:
        witness = f"flock:{folder / 'witness'}"
    steps = _Steps(kills, shown)
    showing = asyncio.create_task(steps.show())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        pair = Pair(folder, mode, witness, session)
        crowd = Crowd(pair.urls, EVENT, joins_per_s, session)
        try:
            await pair.start()
            await pair.admin("PUT", f"/v1/admin/events/{EVENT}", SETTINGS)
            await pair.admin("POST", f"/v1/admin/events/{EVENT}/open", {})
            steps.next()
            coming = asyncio.create_task(crowd.run())
            recoveries_s, may_be_lost = await _kill(pair, crowd, kills, steps)
            crowd.is_over = True
            await coming
            exported = str(await pair.admin("GET", f"/v1/admin/events/{EVENT}/records"))
            verdict = judge(crowd.joins, map(msgspec.json.decode, exported.splitlines()))
            back = await _take_up(session, pair.urls[pair.leader], verdict.lost)
        finally:
            showing.cancel()
            crowd.is_over = True
            await crowd.close()
            await pair.close()
    return _told(mode, witness, joins_per_s, recoveries_s, may_be_lost, verdict, back)


async def _kill(pair: Pair, crowd: Crowd, kills: int, steps: _Steps) -> tuple[list[float | None], list[str]]:
    """Kill whoever leads, so many times; returns the recovery times, and what promotions said may be lost."""
    recoveries_s, may_be_lost = [], []
    for _ in range(kills):
        await asyncio.sleep(BEFORE_KILL_S)
        killed_s = await pair.kill()
        steps.next()
        lost = await pair.succeed()
        may_be_lost += [] if lost is None else [lost]
        recoveries_s.append(await _recovery(crowd, killed_s))
        steps.next()
        await pair.come_back()
        await asyncio.sleep(AFTER_RECOVERY_S)
        steps.next()
    return recoveries_s, may_be_lost


async def _recovery(crowd: Crowd, killed_s: float) -> float | None:
    """Wait for the first answer to a join that was sent after the kill; returns the seconds between the two."""
    while time.monotonic() - killed_s < RECOVERY_LIMIT_S:
        answered_s = crowd.first_answer_after(killed_s)
        if answered_s is not None:
            return answered_s - killed_s
        await asyncio.sleep(LOOK_S)
    return None


async def _take_up(session: aiohttp.ClientSession, url: str, lost: Sequence[Join]) -> int:
    """Let those whose place was lost show their tokens; returns how many have their own number again."""
    back = 0
    for join in lost:
        headers = {"Authorization": f"Bearer {join.token}"}
        async with session.get(f"{url}/v1/events/{EVENT}/position", headers=headers) as response:
            place = await response.json(content_type=None)
            back += response.status == 200 and place["number"] == join.number
    return back


def _told(
    mode: str,
    witness: str | None,
    joins_per_s: int,
    recoveries_s: Sequence[float | None],
    may_be_lost: Sequence[str],
    verdict: Verdict,
    back: int,
) -> dict[str, Any]:
    recovered = [seconds for seconds in recoveries_s if seconds is not None]
    is_kept = not verdict.out_of_order and not verdict.complaints and len(recovered) == len(recoveries_s)
    return {
        "passed": is_kept and verdict.joins == verdict.acknowledged and (mode == "async" or not verdict.lost),
        "mode": mode,
        "witness": None if witness is None else witness.partition(":")[0],
        "kills": len(recoveries_s),
        "recovery_seconds": [None if seconds is None else round(seconds, 3) for seconds in recoveries_s],
        "recovery_median_seconds": round(statistics.median(recovered), 3) if recovered else None,
        "recovery_longest_seconds": round(max(recovered), 3) if recovered else None,
        "joins": verdict.joins,
        "joins_per_second": joins_per_s,
        "acknowledged": verdict.acknowledged,
        "lost": len(verdict.lost),
        "taken_up_again": back,
        "may_be_lost": list(may_be_lost),
        "out_of_order": verdict.out_of_order,
        "refused": verdict.complaints,
        "availability": round(verdict.availability, 6),
        "availability_of_an_hour_with_one_kill": round(
            verdict.availability_of_an_hour(len(recoveries_s), joins_per_s), 6
        ),
    }


def _lines(told: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return the outcome for people, a line for each thing."""
    never = "not within half a minute" if None in told["recovery_seconds"] else None
    return [
        ("verdict", "passed" if told["passed"] else "FAILED"),
        ("kills of the primary", told["kills"]),
        ("recovery, median (s)", told["recovery_median_seconds"]),
        ("recovery, longest (s)", never or told["recovery_longest_seconds"]),
        ("joins acknowledged", f"{told['acknowledged']} of {told['joins']}"),
        ("joins lost", told["lost"]),
        ("of them taken up again", told["taken_up_again"]),
        ("order", "kept" if not told["out_of_order"] else f"{told['out_of_order']} out of order"),
        ("answered within 1 s", f"{told['availability']:.3%}"),
        ("an hour with one kill", f"{told['availability_of_an_hour_with_one_kill']:.4%}"),
    ]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(epilog=notes("stanchion rehearse --kill-primary --kills 3", 69))(rehearse)
