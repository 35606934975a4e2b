"""What a process remembers of itself and the others."""

import shutil
from pathlib import Path

import pytest

from engine.errors import StorageFailed
from server.replication.peers import NAME, PEERS_LIMIT, Peers


def test_a_name_and_the_others_outlive_the_process(tmp_path: Path) -> None:
    first = Peers(tmp_path)
    first.save(["http://a:1", "http://b:2"])
    second = Peers(tmp_path)
    assert (second.node_id, second.load()) == (first.node_id, ["http://a:1", "http://b:2"])
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_copied_folder_has_another_name_and_the_same_peers(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    first = Peers(tmp_path / "one")
    first.save(["http://a:1"])
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = Peers(tmp_path / "two")
    assert copied.node_id != first.node_id
    assert copied.load() == ["http://a:1"]


def test_an_edge_remembers_nothing_on_disk() -> None:
    edge = Peers(None)
    edge.save(["http://a:1"])
    assert edge.load() == ["http://a:1"]
    assert Peers(None).load() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"node_id": 7}', b"\xff"])
def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    peers = Peers(tmp_path)
    assert (len(peers.node_id), peers.load()) == (16, [])


def test_only_so_many_are_remembered(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    peers.save([f"http://h{count}" for count in range(PEERS_LIMIT + 5)])
    assert peers.load()[0] == "http://h5"
    assert len(peers.load()) == PEERS_LIMIT


def test_a_disk_that_fails_is_said_so(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "gone")
    with pytest.raises(StorageFailed):
        peers.save([])
