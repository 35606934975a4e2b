"""Cables between machines that are namespaces: whole, cut one way, cut both ways, and gone when it is over."""

import socket
from pathlib import Path

import pytest

from tests.scenarios.namespaces import Network

pytestmark = pytest.mark.slow
PORT = 9
SILENCE_S = 0.2


def heard(network: Network, speaker: str, listener: str) -> bool:
    """Whether a datagram arrives."""
    with network[listener].inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind((network[listener].address, PORT))
        ear.settimeout(SILENCE_S)
        with network[speaker].inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(b"hello", (network[listener].address, PORT))
        try:
            return ear.recv(10) == b"hello"
        except TimeoutError:
            return False


def test_cuts_concern_whom_they_name_and_heal() -> None:
    with Network(("a", "b", "c")) as network:
        assert heard(network, "a", "b")
        network.deafen("b", "a")
        assert not heard(network, "a", "b")
        assert heard(network, "b", "a")
        network.cut("a", "b", "c")
        assert not any((heard(network, "b", "a"), heard(network, "a", "c"), heard(network, "c", "a")))
        assert heard(network, "b", "c")
        network.heal()
        assert all((heard(network, "a", "b"), heard(network, "b", "a"), heard(network, "a", "c")))


def test_nothing_is_left_whatever_happens() -> None:
    with pytest.raises(ZeroDivisionError), Network(("a",)) as network:
        namespaces = [Path("/run/netns") / machine.namespace for machine in (network.operator, network["a"])]
        assert all(path.exists() for path in namespaces)
        raise ZeroDivisionError
    assert not any(path.exists() for path in namespaces)
