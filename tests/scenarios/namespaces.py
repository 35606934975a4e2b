"""Machines made of network namespaces, and the cables between them: cut both ways, cut one way, slow, and whole again.

All of it lives in namespaces: a switch (a bridge in one of its own) and one namespace per machine, joined by a pair of
virtual interfaces. Nothing is seen outside, so addresses need not be unique; names carry the id of this process. What
a cut drops it drops silently, as a broken network does: nobody is told that nobody hears them.

A thread that is `inside` a machine opens its sockets there, and what it starts runs there. Needs root, ip and nft.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

PREFIX = "stanchion"
# The rules of one machine, put in the place of those before in one step.
RULES = """
add table ip cuts
delete table ip cuts
table ip cuts {{
chain heard {{
type filter hook input priority 0
{}
}}
}}
"""
CLONE_NEWNET = 0x40000000
COMMAND_DEADLINE_S = 20.0

_libc = ctypes.CDLL(None, use_errno=True)
_networks = count(1)


def is_possible() -> bool:
    """Return whether this process may make namespaces."""
    return os.geteuid() == 0 and all(map(_program, ("ip", "nft")))


class Machine:
    """One machine: its address, whom it does not hear, and whom at what speed."""

    def __init__(self, name: str, namespace: str, address: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.unheard: set[str] = set()
        self.slowly_heard: dict[str, int] = {}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be on this machine, with this thread, until the block ends."""
        with open("/proc/thread-self/ns/net", "rb") as here, open(f"/run/netns/{self.namespace}", "rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def apply(self) -> None:
        """Drop what is not to be heard, and nothing else; in one step."""
        drops = [f"ip saddr {address} drop" for address in sorted(self.unheard)]
        for address, speed in self.slowly_heard.items():
            drops.append(f"ip saddr {address} limit rate over {speed} kbytes/second burst 16 kbytes drop")
        with self.inside():
            _run("nft", "-f", "-", stdin=RULES.format("\n".join(drops)))


class Network:
    """A switch and the machines on it; the operator sits at the switch, whom no cut concerns."""

    def __init__(self, names: Sequence[str]) -> None:
        _sweep()
        prefix = f"{PREFIX}-{os.getpid()}-{next(_networks)}"
        self.operator = Machine("operator", f"{prefix}-operator", "10.77.0.1")
        self.machines = {
            name: Machine(name, f"{prefix}-{name}", f"10.77.0.{index}") for index, name in enumerate(names, 2)
        }
        self._made: list[str] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def _make(self) -> None:
        switch = self.operator.namespace
        self._add(switch)
        lines = [
            "link add bridge type bridge",
            "link set bridge up",
            f"address add {self.operator.address}/24 dev bridge",
        ]
        for index, machine in enumerate(self.machines.values()):
            self._add(machine.namespace)
            lines.append(f"link add to{index} type veth peer name eth0 netns {machine.namespace}")
            lines.append(f"link set to{index} master bridge up")
        _run("ip", "-n", switch, "-batch", "-", stdin="\n".join(lines))
        for machine in self.machines.values():
            mine = [f"address add {machine.address}/24 dev eth0", "link set eth0 up"]
            _run("ip", "-n", machine.namespace, "-batch", "-", stdin="\n".join(mine))

    def _add(self, namespace: str) -> None:
        _run("ip", "netns", "add", namespace)
        self._made.append(namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")

    def close(self) -> None:
        """Take everything down; what still runs in it is cut off for good."""
        while self._made:
            with suppress(subprocess.SubprocessError):
                _run("ip", "netns", "delete", self._made.pop())

    # ---- cables -----------------------------------------------------------------------------------------

    def deafen(self, listener: str, speaker: str) -> None:
        """Cut one way: nothing that the speaker sends arrives at the listener."""
        self[listener].unheard.add(self[speaker].address)
        self[listener].apply()

    def cut(self, one: str, *others: str) -> None:
        """Cut one machine from others, both ways."""
        for other in others:
            self.deafen(one, other)
            self.deafen(other, one)

    def heal(self) -> None:
        """Make all cables whole, and fast."""
        for machine in self.machines.values():
            if machine.unheard or machine.slowly_heard:
                machine.unheard.clear()
                machine.slowly_heard.clear()
                machine.apply()

    def slow_down(self, listener: str, speaker: str, kilobytes_s: int) -> None:
        """Let one machine hear another no faster than this; what is beyond is dropped."""
        self[listener].slowly_heard[self[speaker].address] = kilobytes_s
        self[listener].apply()


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(program: str, *arguments: str, stdin: str = "") -> None:
    found = _program(program)
    assert found is not None, f"{program} is not installed: see TEST_PACKAGES in the Makefile"
    done = subprocess.run(
        [found, *arguments], input=stdin, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, [program, *arguments], done.stdout, done.stderr)


def _sweep() -> None:
    """Take down what a run left that was itself killed."""
    folder = Path("/run/netns")
    for path in folder.iterdir() if folder.exists() else ():
        name = path.name.split("-")
        if name[0] == PREFIX and len(name) > 2 and name[1].isdecimal() and not Path(f"/proc/{name[1]}").exists():
            with suppress(subprocess.SubprocessError):
                _run("ip", "netns", "delete", path.name)
