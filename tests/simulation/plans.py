"""What a seed decides before a life begins: how the nodes are set up, and what befalls them when."""

import json
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from tests.simulation.nodes import WITNESS_HOST

SETUPS = ("sync", "witness", "async", "growing")
CLIENTS_HOST = "k"
FAULTS_UNTIL_S = 6.5
VISITORS = (4, 14)
MORE_NODES_SHARE = 0.3


class Fault(NamedTuple):
    """Something that befalls `target` (or the way between it and `other`) at a moment, for `lasting_s` seconds."""

    at_s: float
    kind: str
    target: str
    other: str
    lasting_s: float


class Plan(NamedTuple):
    """One life. `setup` is "sync", "witness" (sync with one), "async", or "growing" (single at first, then sync)."""

    seed: int
    setup: str
    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    visitors: int
    faults: tuple[Fault, ...]


# What may befall a life, and how often it is drawn.
FAULTS = {
    "kill": 5,
    "power": 5,
    "freeze": 4,
    "part": 4,
    "deafen": 3,
    "isolate": 3,
    "cut off": 4,
    "reset": 2,
    "flip": 2,
    "wipe": 2,
    "disk": 2,
    "slow": 4,
    "blackout": 2,
    "snapshots": 3,
    "hand over": 3,
    "fail over": 3,
}


def plan_from(line: str) -> Plan:
    """Return the plan that `line_of` wrote."""
    seed, setup, nodes, edges, visitors, faults = json.loads(line)
    return Plan(seed, setup, tuple(nodes), tuple(edges), visitors, tuple(Fault(*fault) for fault in faults))


def plan_of(seed: int, focus: str = "") -> Plan:
    """Return the plan of a seed. `focus` are setups and kinds of faults to draw from, and the number of nodes.

    Each of these is drawn from all there are where the focus does not say ("sync, slow, blackout, 3"). Or it is a
    whole plan as a line of seeds.txt, and the seed is all that differs.
    """
    if focus.startswith("["):
        return plan_from(focus)._replace(seed=seed)
    random, words = Random(seed), [word.strip() for word in focus.split(",")]
    setup = random.choice([its for its in SETUPS if its in words] or SETUPS)
    nodes, edges = ("a", "b"), ()
    if random.random() < MORE_NODES_SHARE or "3" in words:
        nodes, edges = random.choice(((("a", "b", "c"), ()), (("a", "b", "e"), ("e",))))
    kinds = {kind: share for kind, share in FAULTS.items() if kind in words} or FAULTS
    faults = sorted(_fault(random, setup, nodes, kinds) for _ in range(random.randint(1, 4)))
    return Plan(seed, setup, nodes, edges, random.randint(*VISITORS), tuple(faults))


def _fault(random: Random, setup: str, nodes: tuple[str, ...], kinds: Mapping[str, int]) -> Fault:
    kind = random.choices(list(kinds), list(kinds.values()))[0]
    if setup == "witness" and kind == "fail over":
        kind = "kill"  # nobody is promoted by hand where there is a witness
    target = random.choice(nodes)
    places = [*nodes, CLIENTS_HOST, *([WITNESS_HOST] * 2 if setup == "witness" else [])]
    other = random.choice([place for place in places if place != target])
    lasting_s = random.choice((random.uniform(0.05, 0.5), random.uniform(0.5, 2), random.uniform(2, 5)))
    return Fault(random.uniform(0.2, FAULTS_UNTIL_S), kind, target, other, lasting_s)


def sentence(plan: Plan) -> str:
    """Say what a plan is, in one line."""
    told = "; ".join(
        f"{fault.at_s:.3f} {fault.kind} {fault.target} {fault.other} for {fault.lasting_s:.3f}" for fault in plan.faults
    )
    return f"seed {plan.seed}: {plan.setup}, nodes {' '.join(plan.nodes)}, {plan.visitors} visitors. {told}"
