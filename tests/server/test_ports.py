"""Binding ports: options are inherited, a port that is taken is a setting at fault."""

import socket

import pytest

from engine.errors import BadConfiguration
from server.config import Config, load
from server.ports import UNSENT_LIMIT_BYTES, Ports, bind


def test_sockets_pass_their_options_on_to_their_connections() -> None:
    [listening] = bind("127.0.0.1", 0, "port")
    with listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_LIMIT_BYTES


def test_a_taken_port_is_named_with_its_setting() -> None:
    with Ports(load({"port": "0"}).config) as ports:
        port = ports.sockets[0][0].getsockname()[1]
        with pytest.raises(BadConfiguration, match=f"^admin_port: cannot listen on 127.0.0.1:{port}: "):
            ports.sockets[0][0].listen()
            bind("127.0.0.1", port, "admin_port")


def test_a_name_nobody_knows_is_a_setting_at_fault() -> None:
    with pytest.raises(BadConfiguration, match=r"^port: cannot listen on nowhere\.invalid:0: "):
        bind("nowhere.invalid", 0, "port")


def test_a_public_host_gets_a_second_port_for_the_admin_api() -> None:
    config = load({"host": "0.0.0.0", "port": "0", "admin_port": "0", "public_url": "https://q.example"}).config
    with Ports(config) as ports:
        public, admin = ports.urls
        assert public.startswith("http://0.0.0.0:") and admin.startswith("http://127.0.0.1:")
    assert all(bound.fileno() == -1 for sockets in ports.sockets for bound in sockets)


def public(**more: object) -> Config:
    settings = {"host": "0.0.0.0", "port": "0", "admin_port": "0", "public_url": "https://q.example"}
    return load(settings | more).config


def test_followers_get_a_port_of_their_own_behind_the_others_where_one_is_named() -> None:
    with Ports(public(replication_listen="127.0.0.1:0")) as ports:
        assert len(ports.urls) == 3 and ports.urls[2].startswith("http://127.0.0.1:")
        assert len({bound.getsockname()[1] for sockets in ports.sockets for bound in sockets}) == 3
    assert all(bound.fileno() == -1 for sockets in ports.sockets for bound in sockets)


def test_followers_get_no_port_where_none_is_named() -> None:
    with Ports(public()) as ports:
        assert len(ports.urls) == 2
    with Ports(load({"port": "0"}).config) as ports:
        assert len(ports.urls) == 1, "on loopback one port serves everything"


def test_a_taken_port_of_followers_is_named_and_the_others_are_let_go() -> None:
    [taken] = bind("127.0.0.1", 0, "port")
    with taken:
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BadConfiguration, match=f"^replication_listen: cannot listen on {address}: "):
            Ports(public(replication_listen=address))


def test_addresses_of_ipv6_are_written_in_brackets_or_the_lack_of_it_is_named() -> None:
    config = load({"host": "::1", "port": "0"}).config
    try:
        with Ports(config) as ports:
            assert ports.urls[0].startswith("http://[::1]:")
    except BadConfiguration as error:
        assert "cannot listen on ::1:0" in str(error)
