"""Broken networks, frozen and killed processes, wiped disks, wrong keys: each has to end as docs/followers.md says.

`python -m tests.scenarios.partitions --rounds 5 --seed 1` makes a network of namespaces: two servers, a witness in
PostgreSQL, and visitors, each on a machine of its own, and lets every scenario befall the pair, in another order each
round. Visitors join all the time and ask both servers. Each scenario says what must be so while it lasts; when it is
over everything is made whole, one must lead and the other follow in step, and the history checker is given what
visitors were answered: nobody lost, no number twice, nobody out of order, no term that falls.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from bench.prefill import make_folder
from tests.scenarios.flipping import FlippingProxy
from tests.scenarios.isolated import (
    MACHINES,
    REPLICATION_PORT,
    IsolatedPair,
    Times,
    Trial,
    judge,
    witness_on,
)
from tests.scenarios.namespaces import Network
from tests.server.daemons import cli

Scenario = Callable[[Trial], str]
A_MOMENT_S = 0.5
SLOW_KILOBYTES_S = 20
RATE_PER_S = 200.0
KEPT_SNAPSHOTS = 3
NO_SNAPSHOTS = ("--snapshot-every-records", "100000000", "--snapshot-interval-s", "86400")
FAR_BEHIND_S = 300.0
# The history checker's plain list takes minutes for more.
WHOLE_RECORDS = 100_000


# ---- with a witness -------------------------------------------------------------------------------------


def cut_from_each_other(trial: Trial) -> str:
    """Primary and standby cut from each other: the primary goes on alone, the standby never leads."""
    trial.network.cut(trial.primary, trial.standby)
    return _the_primary_goes_on_alone(trial)


def deaf_standby(trial: Trial) -> str:
    """Nothing of the primary arrives at the standby: as if both ways were cut."""
    trial.network.deafen(trial.standby, trial.primary)
    return _the_primary_goes_on_alone(trial)


def deaf_primary(trial: Trial) -> str:
    """Nothing of the standby arrives at the primary: as if both ways were cut."""
    trial.network.deafen(trial.primary, trial.standby)
    return _the_primary_goes_on_alone(trial)


def _the_primary_goes_on_alone(trial: Trial) -> str:
    since_s = time.monotonic()
    alone_s = trial.wait(lambda: trial.stands("alone"), "the primary going on alone")
    trial.wait_answered()
    assert trial.server(trial.primary).readiness()["degraded"], "going on alone has to be shown"
    trial.hold(lambda: trial.follows(trial.standby), "the standby follows", 2 * trial.lease_s)
    trial.wait_answered()
    silence_s = trial.longest_silence_s(since_s)
    trial.pair.settle()
    assert trial.leads(trial.primary), "the primary has to be the same"
    return f"alone after {alone_s:.2f} s, silent for {silence_s:.2f} s"


def primary_without_witness(trial: Trial) -> str:
    """The primary cut from the witness: it goes on, on the word of its standby, and nobody notices."""
    trial.network.cut(trial.primary, "witness")
    return _nobody_notices(trial)


def standby_without_witness(trial: Trial) -> str:
    """The standby cut from the witness: it cannot take over, and need not."""
    trial.network.cut(trial.standby, "witness")
    return _nobody_notices(trial)


def no_witness(trial: Trial) -> str:
    """The witness killed, and back: the primary goes on, on the word of its standby, and nobody notices."""
    trial.pair.kill_witness()
    said = _nobody_notices(trial)
    trial.pair.start_witness()
    trial.hold(lambda: trial.stands("in step"), "the standby is in step", trial.lease_s)
    return said


def _nobody_notices(trial: Trial) -> str:
    since_s = time.monotonic()
    trial.hold(
        lambda: trial.stands("in step") and trial.follows(trial.standby), "the standby is in step", 1.6 * trial.lease_s
    )
    silence_s = trial.longest_silence_s(since_s)
    assert silence_s < trial.lease_s, f"nobody was answered for {silence_s:.2f} s"
    trial.network.heal()
    trial.hold(lambda: trial.leads(trial.primary), "the primary leads", A_MOMENT_S)
    return f"silent for {silence_s:.2f} s"


def primary_alone_in_the_world(trial: Trial) -> str:
    """The primary cut from witness and standby: it stops within a lease, the standby takes over, it becomes a follower.

    Visitors reach both all the time.
    """
    cut_s = time.monotonic()
    trial.network.cut(trial.primary, trial.standby, "witness")
    taken_s = trial.wait(lambda: trial.leads(trial.standby), "the standby leading")
    trial.wait_answered()
    status, refusal = trial.server(trial.primary).readiness(), trial.pair.join_at(trial.primary)
    assert refusal == (503, "not_primary"), f"the old primary answered {refusal}, and says {status}"
    last_s = trial.last_answer_of_old_term_s() - cut_s
    assert last_s < trial.lease_s + A_MOMENT_S, f"the old primary answered for {last_s:.2f} s after the cut"
    trial.network.heal()
    _the_old_primary_follows(trial)
    return f"silent after {last_s:.2f} s, taken over after {taken_s:.2f} s, {_tail_of(trial)}"


def _the_old_primary_follows(trial: Trial) -> None:
    """See that it follows, and that what only it had is aside and was told of."""
    trial.wait(lambda: trial.follows(trial.primary), "the old primary following")
    trial.wait(trial.pair.is_whole, "the old primary in step", 30)
    put_aside = trial.server(trial.primary).replication().get("put_aside")
    aside = list((trial.pair.data(trial.primary) / "quarantine").glob("*"))
    assert bool(put_aside) == bool(aside), f"in quarantine are {aside}, told was {put_aside!r}"


def _tail_of(trial: Trial) -> str:
    return str(trial.server(trial.primary).replication().get("put_aside") or "nothing to put aside")


def visitors_cut_from_primary(trial: Trial) -> str:
    """Visitors do not reach the primary: the follower answers them, and sends on what only the primary does."""
    trial.network.cut("visitors", trial.primary)
    answered_s = trial.wait_answered()
    trial.hold(lambda: trial.leads(trial.primary) and trial.stands("in step"), "the pair is whole", 2 * trial.lease_s)
    return f"answered after {answered_s:.2f} s"


def frozen_primary(trial: Trial) -> str:
    """The primary frozen for two leases and more: the standby takes over; the woken one answers nobody, and follows."""
    old = trial.server(trial.primary)
    old.freeze()
    taken_s = trial.wait(lambda: trial.leads(trial.standby), "the standby leading")
    trial.wait_answered()
    time.sleep(trial.chance.uniform(0, trial.lease_s))
    woken_s = time.monotonic()
    old.thaw()
    refusal = trial.pair.join_at(trial.primary)
    assert refusal[0] in (200, 201, 503), refusal
    _the_old_primary_follows(trial)
    late_s = trial.last_answer_of_old_term_s() - woken_s
    assert late_s < 0, f"the woken primary answered {late_s:.2f} s after it woke"
    return f"taken over after {taken_s:.2f} s, {_tail_of(trial)}"


def wiped_standby(trial: Trial) -> str:
    """The standby's disk is lost, and the primary dies while the new copy is not complete: nobody takes over.

    The primary comes back, leads again, and its standby becomes one again.
    """
    pair = trial.pair
    pair.kill(trial.standby)
    pair.wipe(trial.standby)
    trial.wait(lambda: trial.stands("alone"), "the primary going on alone")
    trial.network.slow_down(trial.standby, trial.primary, SLOW_KILOBYTES_S)
    pair.launch(trial.standby)
    assert trial.stands("alone"), "a copy that is not complete cannot be in step"
    pair.kill(trial.primary)
    trial.network.heal()
    trial.hold(lambda: not trial.leads(trial.standby), "the standby does not lead", 2 * trial.lease_s)
    pair.launch(trial.primary)
    trial.wait_answered(15)
    assert trial.leads(trial.primary), "the primary has to be the same"
    return "nobody took over"


def wrong_key(trial: Trial) -> str:
    """Somebody with another key wants to follow: refused in a line, and nobody notices."""
    key = trial.pair.folder / "wrong.key"
    key.write_text("stn_replication_" + "A1b2C3d4E5f6G7h8" * 3 + "\n")
    with trial.network["visitors"].inside():
        url = f"http://{trial.network[trial.primary].address}:{REPLICATION_PORT}"
        refused = cli("follow", url, "--key-file", key, "--port", "0")
    assert refused.returncode == 77, refused
    assert "replication key" in refused.stderr, refused.stderr
    assert len(refused.stderr.splitlines()) <= 3, refused.stderr
    assert trial.stands("in step")
    return refused.stderr.splitlines()[-1]


def killed_primary_comes_back(trial: Trial) -> str:
    """The primary killed and started again at about the moment when its standby takes over: one of them leads."""
    trial.pair.kill(trial.primary)
    away_s = trial.chance.uniform(0.2, 2) * trial.lease_s
    time.sleep(away_s)
    trial.pair.launch(trial.primary)
    trial.wait(trial.pair.is_whole, "one primary, and one follower in step", 30)
    is_taken = trial.leads(trial.standby)
    return f"away for {away_s:.2f} s, {'succeeded' if is_taken else 'leads again'}"


WITNESSED: Mapping[str, Scenario] = MappingProxyType(
    {
        scenario.__name__: scenario
        for scenario in (
            cut_from_each_other,
            deaf_standby,
            deaf_primary,
            primary_without_witness,
            standby_without_witness,
            primary_alone_in_the_world,
            visitors_cut_from_primary,
            no_witness,
            frozen_primary,
            wiped_standby,
            wrong_key,
            killed_primary_comes_back,
        )
    }
)


# ---- without a witness ----------------------------------------------------------------------------------


def promoted_by_hand(trial: Trial) -> str:
    """The primary killed, its standby promoted by hand: the old one finds out when it comes back, and follows."""
    pair = trial.pair
    pair.kill(trial.primary)
    trial.hold(lambda: trial.follows(trial.standby), "the standby follows", 1.5 * trial.lease_s)
    told = pair.promote(trial.standby)
    assert told.returncode == 0, told.stderr
    trial.wait_answered()
    pair.launch(trial.primary)
    _the_old_primary_follows(trial)
    return told.stdout.strip()


def silent_primary(trial: Trial) -> str:
    """The primary cut from its standby, without a witness: it is not succeeded unless somebody says that it is dead."""
    trial.network.cut(trial.primary, trial.standby)
    trial.wait(lambda: trial.stands("alone"), "the primary going on alone")
    refused = trial.pair.promote(trial.standby)
    assert refused.returncode, "a silent primary may be alive"
    assert "--old-primary-is-dead" in " ".join(refused.stderr.split()), refused.stderr
    assert trial.follows(trial.standby)
    assert trial.leads(trial.primary)
    trial.wait_answered()
    return refused.stderr.splitlines()[0]


BY_HAND: Mapping[str, Scenario] = MappingProxyType(
    {scenario.__name__: scenario for scenario in (promoted_by_hand, silent_primary)}
)


# ---- far behind, and flipped bits -----------------------------------------------------------------------


def far_behind(network: Network, folder: Path, records: int, *, is_pruned: bool) -> str:
    """Let a standby with nothing follow a primary with so many records, while visitors join.

    It takes the log from its beginning, or a snapshot where the log does not reach back so far any more.
    """
    pair = IsolatedPair(folder, network, None, Times(), () if is_pruned else NO_SNAPSHOTS)
    make_folder(pair.data("one"), records, snapshot=False)
    try:
        pair.start_primary()
        if is_pruned:
            _snapshot_until_pruned(pair)
        pair.is_log_whole = not is_pruned and records <= WHOLE_RECORDS
        with Trial(pair, RATE_PER_S, "far behind", is_whole=False) as trial:
            began_s = time.monotonic()
            pair.launch("two")
            trial.wait(pair.is_whole, "the standby in step", FAR_BEHIND_S)
            caught_up_s = time.monotonic() - began_s
            said = trial.server("two").log()
            assert f'"begin":"{"snapshot" if is_pruned else "here"}"' in said, said
        pair.stop()
    finally:
        pair.end()
    return f"{records} records, {'by snapshot' if is_pruned else 'by log'}: in step after {caught_up_s:.1f} s"


def _snapshot_until_pruned(pair: IsolatedPair) -> None:
    """Have snapshots written until the first segment of the log is gone."""
    server = pair.servers["one"]
    for _ in range(2 * KEPT_SNAPSHOTS):
        if not any((pair.data("one") / "log").glob("0000000001-*")):
            return
        pair.join_at("one")  # two snapshots of one state would be one
        server.admin("POST", "/v1/admin/snapshot", {})
    raise AssertionError("the log is not pruned behind its snapshots")


def flipped_bits(network: Network, folder: Path, flips: int, seed: int) -> str:
    """Flip bits between a standby and its primary: each time the link is dropped, and the copy is made good."""
    chance = random.Random(seed)
    primary = network["one"].address
    with FlippingProxy(network.operator, primary, REPLICATION_PORT, chance) as proxy:
        pair = IsolatedPair(folder, network, None, Times())
        pair.flag("one", "--replication-url", f"http://{proxy.address}")
        pair.follow_at("two", f"http://{proxy.address}")
        try:
            pair.start()
            with Trial(pair, RATE_PER_S, f"{seed} flips") as trial:
                for _ in range(flips):
                    proxy.flip(chance.choice(("to", "from")))
                    trial.wait(lambda: _links_lost(trial) >= proxy.flipped, "the link being dropped", 40)
                    trial.wait(pair.is_whole, "being in step again", 40)
            lost = _links_lost(trial)
            assert lost >= flips, f"{flips} bits were flipped, and {lost} links dropped"
            pair.stop()
        finally:
            pair.end()
    return f"{flips} bits flipped, {lost} links dropped"


def _links_lost(trial: Trial) -> int:
    return trial.server(trial.primary).log().count('"event":"follower_left"')


# ---- all of it ------------------------------------------------------------------------------------------


@contextmanager
def pair_in(network: Network, folder: Path, times: Times, *, has_witness: bool) -> Iterator[IsolatedPair]:
    """Run a pair until the block ends, with its witness or without."""
    with ExitStack() as ending:
        witness = ending.enter_context(witness_on(network["witness"])) if has_witness else None
        pair = IsolatedPair(folder, network, witness, times)
        ending.callback(pair.end)
        pair.start()
        yield pair


def _round(pair: IsolatedPair, scenarios: Mapping[str, Scenario], seed: str, rate_per_s: float) -> int:
    """Let everything befall a pair once, in a random order; returns how much went wrong."""
    names = list(scenarios)
    random.Random(seed).shuffle(names)
    return sum(
        _told(name, lambda name=name: run(pair, scenarios[name], f"{seed} {name}", rate_per_s)) for name in names
    )


def run(pair: IsolatedPair, scenario: Scenario, seed: str, rate_per_s: float) -> str:
    """Let one thing befall a pair; returns what there is to say. Raises AssertionError."""
    with Trial(pair, rate_per_s, seed) as trial:
        return scenario(trial)


def _told(name: str, act: Callable[[], str]) -> int:
    """Do something and say how it went; returns 1 when it went wrong."""
    began_s = time.monotonic()
    try:
        said = act()
    except AssertionError as error:
        print(f"  {name} WRONG after {time.monotonic() - began_s:.1f} s: {error}", flush=True)
        return 1
    print(f"  {name} ({time.monotonic() - began_s:.1f} s): {said}", flush=True)
    return 0


def campaign(network: Network, folder: Path, options: argparse.Namespace) -> int:
    """Run everything; returns how much went wrong."""
    wrong, seed, records = 0, options.seed, options.records
    for kind, scenarios in (("witness", WITNESSED), ("hand", BY_HAND)):
        with pair_in(network, folder / kind, Times(options.lease_s, 2.0), has_witness=kind == "witness") as pair:
            for turn in range(1, options.rounds + 1):
                print(f"round {turn}, seed {seed}, by {kind}")
                wrong += _round(pair, scenarios, f"{seed} {turn}", options.rate)
            report = judge(pair, pair.joins)
            print(report.explain())
            wrong += not report.ok
    wrong += _told("flipped_bits", lambda: flipped_bits(network, folder / "flips", 10 * options.rounds, seed))
    wrong += _told("far_behind", lambda: far_behind(network, folder / "log", records, is_pruned=False))
    wrong += _told("far_behind", lambda: far_behind(network, folder / "snapshot", records, is_pruned=True))
    return wrong


def main(arguments: list[str]) -> int:
    """Run from the command line; returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.partitions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=RATE_PER_S, help="joins a second")
    parser.add_argument("--lease-s", type=float, default=1.5)
    parser.add_argument("--records", type=int, default=1_000_000, help="how far behind a standby is")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="stanchion-partitions-") as temporary,
        Network(MACHINES) as network,
        network.operator.inside(),
    ):
        wrong = campaign(network, options.folder or Path(temporary), options)
    print(f"{wrong} scenarios went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
