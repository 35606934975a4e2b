"""Each partition, freeze and wipe once, between machines made of network namespaces: how it ends, and what is left."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.isolated import MACHINES, IsolatedPair, Times
from tests.scenarios.namespaces import Network, is_possible
from tests.scenarios.partitions import BY_HAND, WITNESSED, far_behind, flipped_bits, pair_in, run

assert is_possible(), "root, ip and nft are needed: see TEST_PACKAGES in the Makefile"

pytestmark = pytest.mark.slow
TIMES = Times(lease_s=1.0, standby_timeout_s=1.0)
RATE_PER_S = 150


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(MACHINES) as made, made.operator.inside():
        yield made


@pytest.fixture(scope="module")
def pair(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedPair]:
    with pair_in(network, tmp_path_factory.mktemp("witnessed"), TIMES, has_witness=True) as made:
        yield made


@pytest.mark.parametrize("name", WITNESSED)
def test_with_a_witness(name: str, pair: IsolatedPair, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(pair, WITNESSED[name], name, RATE_PER_S)
    with capsys.disabled():
        print(f"\n{name}: {said}")


def test_both_leave_logs_that_verify(pair: IsolatedPair) -> None:
    pair.stop()
    pair.verify()


def test_without_a_witness(network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pair_in(network, tmp_path, TIMES, has_witness=False) as pair:
        for name, scenario in BY_HAND.items():
            said = run(pair, scenario, name, RATE_PER_S)
            with capsys.disabled():
                print(f"\n{name}: {said}")


def test_every_flipped_bit_is_noticed(network: Network, tmp_path: Path) -> None:
    flipped_bits(network, tmp_path, 3, seed=1)


@pytest.mark.parametrize("is_pruned", [False, True], ids=["by log", "by snapshot"])
def test_a_standby_that_is_far_behind_catches_up(is_pruned: bool, network: Network, tmp_path: Path) -> None:
    far_behind(network, tmp_path, 20_000, is_pruned=is_pruned)
