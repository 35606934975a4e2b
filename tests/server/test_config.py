"""Settings of a process: order of the sources, bounds, relations, and one line for each problem."""

from pathlib import Path

import pytest

from engine.errors import BadConfiguration
from server.config import Config, is_loopback, load


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Config.model_fields:
        monkeypatch.delenv(f"STANCHION_{name.upper()}", raising=False)


def problems(**flags: object) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        load(flags)
    return str(caught.value).splitlines()


def test_without_any_source_the_defaults_hold_and_say_so() -> None:
    loaded = load({})
    assert (loaded.config.host, loaded.config.port, loaded.config.replication) == ("127.0.0.1", 8080, "sync")
    assert set(loaded.sources.values()) == {"default"}


def test_flags_come_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "stanchion.toml"
    file.write_text('port = 1001\nsegment_mib = 8\nkeep_snapshots = 5\ntrusted_proxies = ["10.0.0.0/8"]\n')
    monkeypatch.setenv("STANCHION_PORT", "1002")
    monkeypatch.setenv("STANCHION_SEGMENT_MIB", "16")
    loaded = load({"port": "1003", "demo": None}, file)
    assert (loaded.config.port, loaded.config.segment_mib, loaded.config.keep_snapshots) == (1003, 16, 5)
    assert [loaded.sources[n] for n in ("port", "segment_mib", "keep_snapshots", "demo")] == [
        "flag",
        "environment",
        "file",
        "default",
    ]
    assert ("trusted_proxies", "10.0.0.0/8", "file") in list(loaded.lines())


def test_lists_may_be_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANCHION_TRUSTED_PROXIES", "10.0.0.0/8, ::1/128")
    config = load({"allowed_origins": "https://A.example,http://b.example:8080"}).config
    assert list(map(str, config.trusted_proxies)) == ["10.0.0.0/8", "::1/128"]
    assert config.allowed_origins == ("https://a.example", "http://b.example:8080")


def test_all_problems_are_told_at_once_each_with_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANCHION_KEEP_SNAPSHOTS", "2")
    found = problems(port="abc", push_interval_ms="49", allowed_origins="*", trusted_proxies="10.0.0.1/8", nonsense="1")
    assert len(found) == 6
    assert any(line.startswith("port: ") and line.endswith("(from --port)") for line in found)
    assert any(line.startswith("keep_snapshots: ") and "STANCHION_KEEP_SNAPSHOTS" in line for line in found)
    assert any(line.startswith("nonsense: is not a setting") for line in found)


@pytest.mark.parametrize("mode", ["async", "single"])
def test_a_witness_needs_two_disks_to_choose_between(mode: str) -> None:
    assert "needs replication=sync" in "".join(problems(replication=mode, witness="flock:lease"))


def test_a_listener_for_followers_is_of_use_only_where_the_host_is_not_loopback() -> None:
    assert "of no use" in "".join(problems(replication_listen="127.0.0.1:9000"))


@pytest.mark.parametrize("address", ["9000", "host:", "host:port", "host:70000", "a b:1"])
def test_the_listener_for_followers_is_an_address_and_a_port(address: str) -> None:
    assert "replication_listen" in "".join(problems(replication_listen=address))


def test_who_listens_everywhere_for_followers_says_where_it_is_reached() -> None:
    public = {"host": "0.0.0.0", "public_url": "https://queue.shop.example", "replication_listen": "0.0.0.0:9000"}
    assert "replication_url" in "".join(problems(**public))


def test_a_public_host_needs_an_https_public_url() -> None:
    assert problems(host="0.0.0.0")[0].startswith("public_url: is required")
    assert problems(host="0.0.0.0", public_url="http://q.example")[0].startswith("public_url: must be https")
    config = load({"host": "0.0.0.0", "public_url": "https://Q.example/"}).config
    assert config.is_public and config.public_url == "https://q.example"


def test_a_loopback_host_may_have_a_public_url_without_tls() -> None:
    config = load({"public_url": "http://localhost:8080"}).config
    assert not config.is_public


def test_both_listeners_cannot_share_a_port() -> None:
    assert problems(host="::", public_url="https://q.example", admin_port="8080")[0].startswith("admin_port: ")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_misspelt_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANCHION_PROT", "1")
    monkeypatch.setenv("STANCHION_URL", "http://127.0.0.1:1")
    assert load({}).unknown_env == ["STANCHION_PROT"]


def test_a_file_that_cannot_be_read_or_parsed_is_one_clear_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1")
    for path, expected in ((broken, "is not TOML"), (tmp_path / "none.toml", "cannot read")):
        with pytest.raises(BadConfiguration, match=expected) as caught:
            load({}, path)
        assert "\n" not in str(caught.value)


def test_passwords_in_urls_are_not_shown() -> None:
    shown = {name: value for name, value, _ in load({"backend": "redis://user:secret@host/0"}).lines()}
    assert "secret" not in shown["backend"] and "host" in shown["backend"]


def test_the_defaults_are_not_weaker_than_anything() -> None:
    assert load({}).config.weaker() == []


def test_every_weaker_choice_is_told() -> None:
    config = load(
        {
            "host": "0.0.0.0",
            "public_url": "https://q.example",
            "admin_host": "10.0.0.1",
            "replication_listen": "10.0.0.1:9000",
            "trusted_proxies": "0.0.0.0/0",
            "allowed_origins": "http://a.example",
            "log_user_ids": True,
        }
    ).config
    assert len(config.weaker()) == 5


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "[::1]:9000", "localhost:0"])
def test_followers_on_this_machine_alone_are_nothing_weaker(address: str) -> None:
    config = load({"host": "0.0.0.0", "public_url": "https://q.example", "replication_listen": address}).config
    assert config.replication_listen == address and config.weaker() == []
