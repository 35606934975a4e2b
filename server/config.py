"""Process configuration: what one daemon is told when it starts, and where each value came from.

Flags come before `STANCHION_*`, that before a TOML file, that before the defaults. `load` is the only way to a
`Config`; it checks bounds and relations together, names every problem in a line of its own, and touches
nothing. Each field's description is also the help of its flag, so a setting is written down once.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from engine.errors import BadConfiguration

ENV_PREFIX = "STANCHION_"
# Read by the commands that talk to a server; no settings of a daemon.
COMMAND_ENV = frozenset(("STANCHION_URL", "STANCHION_ADMIN_KEY_FILE", "STANCHION_CONFIG"))
_ORIGIN = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_SECRET_IN_URL = re.compile(r"(?<=://)[^/@]*:[^/@]*(?=@)")

Network = IPv4Network | IPv6Network


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener on `host`; a name that is not "localhost" cannot say."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _items(value: object) -> object:
    """Take a list as TOML gives it, or as text with commas."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _network(value: object) -> object:
    try:
        return ip_network(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"must be networks such as 10.0.0.0/8: {error}") from None


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError(f"must be origins such as https://shop.example, not {value!r}")
    return value.lower()


def _public_url(value: str) -> str:
    if not _ORIGIN.fullmatch(value.rstrip("/")):
        raise ValueError("must be an http or https URL without a path, such as https://queue.shop.example")
    return value.rstrip("/").lower()


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", value):
        raise ValueError("must be an address or a host name, without a port")
    return value


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 10.0.0.5:8082")
    _host(host.strip("[]"))
    return value


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65535)]
Networks = Annotated[tuple[Annotated[Network, BeforeValidator(_network)], ...], NoDecode, BeforeValidator(_items)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_items)]


class Config(BaseSettings):
    """All settings of one process; units are in the names."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, hide_input_in_errors=True
    )

    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8080, description="Port to listen on; 0 takes a free one.")
    data: Path = Field(Path("data"), description="Folder for log, snapshots and keys.")
    backend: str = Field("memory:", description="What holds the line, as a URL; memory: keeps it in this process.")
    demo: bool = Field(False, description="Make and open an event named demo that lets five in every ten seconds.")
    replication: Literal["sync", "async", "single"] = Field(
        "sync", description="What an answer waits for: also the standby in step, or this disk; single has no followers."
    )
    witness: str | None = Field(
        None, description="postgresql://… or flock:/path: who keeps the lease that allows automatic failover."
    )
    lease_s: float = Field(1.5, ge=0.2, le=60, description="Seconds the right to answer lasts without renewal.")
    standby_timeout_s: float = Field(
        2.0, ge=0.1, le=60, description="Seconds without progress after which a standby is no longer waited for."
    )
    admin_host: Host = Field("127.0.0.1", description="Address of the admin listener when HOST is not loopback.")
    admin_port: Port = Field(8081, description="Port of the admin listener when HOST is not loopback.")
    replication_listen: Annotated[str, AfterValidator(_address)] | None = Field(
        None, description="HOST:PORT of a listener for followers when HOST is not loopback; none by default."
    )
    replication_url: Annotated[str, AfterValidator(_public_url)] | None = Field(
        None, description="How the other servers reach this one; by default the address it listens on for them."
    )
    public_url: Annotated[str, AfterValidator(_public_url)] | None = Field(
        None, description="How visitors reach this server; https://… is required when HOST is not loopback."
    )
    trusted_proxies: Networks = Field((), description="Networks whose X-Forwarded-For is believed, with commas.")
    allowed_origins: Origins = Field((), description="Origins whose pages may call the visitor API, with commas.")
    max_connections_per_address: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Connections one address may hold; unlimited by default (carriers share addresses)."
    )
    segment_mib: int = Field(64, ge=1, le=1024, description="Size of one segment of the log in MiB.")
    snapshot_interval_s: int = Field(300, ge=1, le=86_400, description="Seconds between snapshots.")
    snapshot_every_records: int = Field(
        1_000_000, ge=1_000, le=100_000_000, description="Records after which a snapshot is due earlier."
    )
    keep_snapshots: int = Field(3, ge=3, le=100, description="Verified snapshots to keep.")
    push_interval_ms: int = Field(500, ge=50, le=60_000, description="Least time between two sweeps of positions.")
    drain_timeout_s: int = Field(20, ge=0, le=600, description="Seconds running requests get to finish at the end.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_user_ids: bool = Field(False, description="Let user ids appear in the log.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what `load` hands over and look nowhere else."""
        return (init_settings,)

    @property
    def is_public(self) -> bool:
        """Whether others than this machine reach the server, so that admin calls get a listener of their own."""
        return not is_loopback(self.host)

    def weaker(self) -> list[str]:
        """Return one sentence for every choice that is weaker than the default; told at start and in the status."""
        sentences = []
        if self.is_public and not is_loopback(self.admin_host):
            sentences.append(f"The admin API listens on {self.admin_host}, where others than this machine reach it.")
        if not is_loopback((self.replication_listen or "127.0.0.1:0").rpartition(":")[0].strip("[]")):
            where = f"Followers are taken in on {self.replication_listen}, where others than this machine reach it"
            sentences.append(f"{where}: what they are sent is authenticated and not hidden.")
        if any(network.prefixlen == 0 for network in self.trusted_proxies):
            sentences.append("X-Forwarded-For is believed from anybody (trusted_proxies), so addresses can be made up.")
        if any(origin.startswith("http://") for origin in self.allowed_origins):
            sentences.append("Pages loaded without TLS may call the visitor API (allowed_origins).")
        if self.log_user_ids:
            sentences.append("User ids appear in the log (log_user_ids).")
        return sentences


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, the source of each value by field, and variables of the environment nobody knows."""

    config: Config
    sources: Mapping[str, str]
    unknown_env: Sequence[str]

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, value, source) of every setting, passwords in URLs hidden."""
        for name in Config.model_fields:
            value = getattr(self.config, name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
            yield name, _SECRET_IN_URL.sub("…", text), self.sources[name]


def load(flags: Mapping[str, object], config_file: Path | None = None) -> Loaded:
    """Merge flags, environment and file, and check the result; raises BadConfiguration, a line for every problem."""
    layers = [
        ("file", {} if config_file is None else _read_toml(config_file)),
        ("environment", EnvSettingsSource(Config)()),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Config.model_fields, "default")
    for source, layer in layers:
        values |= layer
        sources |= dict.fromkeys(layer, source)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise BadConfiguration("\n".join(_problems(error, sources))) from None
    conflicts = [f"{name}: {problem}" for name, problem in _conflicts(config)]
    if conflicts:
        raise BadConfiguration("\n".join(conflicts))
    known = {ENV_PREFIX + name.upper() for name in Config.model_fields} | COMMAND_ENV
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    return Loaded(config, sources, unknown)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfiguration(f"config: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"config: {path} is not TOML: {error}") from None


def _problems(error: ValidationError, sources: Mapping[str, str]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False):
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            yield f"{name}: is not a setting (from {_origin_of(name, sources)})"
        else:
            text = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{name}: {text[:1].lower()}{text[1:]} (from {_origin_of(name, sources)})"


def _origin_of(name: str, sources: Mapping[str, str]) -> str:
    match sources[name]:
        case "flag":
            return "--" + name.replace("_", "-")
        case "environment":
            return ENV_PREFIX + name.upper()
        case source:
            return source


def _conflicts(config: Config) -> Iterator[tuple[str, str]]:
    if config.witness is not None and config.replication != "sync":
        yield "witness", "needs replication=sync: what one disk alone has cannot be taken over without loss"
    if config.is_public and config.public_url is None:
        yield "public_url", f"is required when host ({config.host}) is not loopback, such as https://queue.shop.example"
    if config.is_public and (config.public_url or "").startswith("http:"):
        yield "public_url", "must be https:// when host is not loopback (TLS ends at the proxy in front)"
    if config.is_public and config.port == config.admin_port != 0:
        yield "admin_port", f"must differ from port ({config.port})"
    if config.replication_listen is not None and not config.is_public:
        yield "replication_listen", f"is of no use while host ({config.host}) is loopback: one port serves everything"
    if (config.replication_listen or "").startswith(("0.0.0.0:", "[::]:")) and config.replication_url is None:
        yield "replication_url", "is required when replication_listen is not one address, such as http://10.0.0.5:8082"
    if config.public_url is not None and urlsplit(config.public_url).hostname in ("0.0.0.0", "::"):
        yield "public_url", "must be an address that visitors can reach"
