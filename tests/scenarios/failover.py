"""Kills of whoever leads, under a flood of joins: how long until somebody answers again, and what became of everything.

`python -m tests.scenarios.failover --kills 30 --seed 1` runs a pair in sync with a witness in PostgreSQL. Visitors
join at fixed moments and ask both addresses (`flood`); some more live a whole life (join, ask, leave, move, are let in,
redeem), an operator lets them in, and watchers ask both servers for places that were answered before. The primary is
killed at a random moment, the standby takes over, the killed one comes back as the follower, and once it is in step
the next kill hits the new primary. At the end the history checker has the last word over everything.

`--mode async` is told to promote by command, as there is no witness: what is lost must be no more than the lag that
was shown, and whoever was lost takes up their own number on the word of their token. `--mode single` is one server
that is killed and started again, for comparison.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvloop

from tests.scenarios.campaigns import Campaign, LossyCampaign
from tests.scenarios.pairs import MODES, Pair
from tests.server.postgres import postgres

CAMPAIGNS: Mapping[str, type[Campaign]] = {"sync": Campaign, "async": LossyCampaign, "single": Campaign}


@contextmanager
def pair_in(folder: Path, mode: str) -> Iterator[Pair]:
    """A pair of this mode, with its witness where it has one."""
    if mode != "sync":
        yield Pair(folder, mode)
        return
    with postgres() as url:
        yield Pair(folder, mode, url)


def main(arguments: list[str]) -> int:
    """Run from the command line; returns 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2000, help="joins a second")
    parser.add_argument("--mode", choices=MODES, default="sync")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    options = parser.parse_args(arguments)
    campaign = CAMPAIGNS[options.mode]
    with tempfile.TemporaryDirectory(prefix="stanchion-failover-") as temporary:
        folder = options.folder or Path(temporary)
        with pair_in(folder, options.mode) as pair:
            outcome = uvloop.run(campaign(pair, options.kills, options.seed, options.rate).run())
    print(f"{options.mode}, {options.kills} kills, seed {options.seed}")
    print(outcome.table())
    print(outcome.report.explain())
    return 0 if outcome.report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
