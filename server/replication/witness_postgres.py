"""The witness in PostgreSQL: one row of one table, changed by single statements.

The server decides which of two swaps was first, and nothing else: no clock of it is asked, `renewed_at` is for people.
It has to be one that forgets nothing it has confirmed: a primary, with fsync, and commits that wait for its disk. The
connection is the process's own, made when it is needed and dropped at the first sign of trouble, so that an operation
takes TIMEOUT_S at most, whatever state server and network are in.
"""

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from engine.errors import BadConfiguration
from server.replication.witness import TIMEOUT_S, Lease, WitnessUnreachable, successor

TABLE = """
    CREATE TABLE IF NOT EXISTS stanchion_lease (
        cluster_id bytea PRIMARY KEY,
        version bigint NOT NULL,
        term bigint NOT NULL,
        holder text NOT NULL,
        url text NOT NULL,
        standby text,
        renewed_at timestamptz NOT NULL DEFAULT now()
    )
"""
READ = "SELECT version, term, holder, url, standby FROM stanchion_lease WHERE cluster_id = $1"
INSERT = """
    INSERT INTO stanchion_lease (cluster_id, version, term, holder, url, standby) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT DO NOTHING RETURNING version
"""
UPDATE = """
    UPDATE stanchion_lease SET version = $2, term = $3, holder = $4, url = $5, standby = $6, renewed_at = now()
    WHERE cluster_id = $1 AND version = $2 - 1 RETURNING version
"""
SESSION = """
    SELECT pg_is_in_recovery() AS is_secondary, current_setting('fsync') = 'off' AS is_weak,
        to_regclass('stanchion_lease') IS NULL AS is_new,
        set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
# A statement that waits longer than its caller did is ended by the server too.
SERVER_SETTINGS = {"application_name": "stanchion witness", "statement_timeout": str(int(TIMEOUT_S * 1000))}

# What no waiting changes: who we are, what we may, and which database it is.
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidSchemaNameError,
)
_MADE_MEANWHILE = (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError)


def open(url: str, cluster_id: bytes, node_id: str) -> "PostgresWitness":
    """Return the witness at a postgresql:// URL; `?allow_weak=1` takes a server that runs without fsync."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise BadConfiguration(f"witness: is no URL of a database: {error}") from None
    allow_weak = query.pop("allow_weak", "0")
    if allow_weak not in ("0", "1"):
        raise BadConfiguration(f"witness: allow_weak must be 0 or 1, not {allow_weak!r}")
    if not parts.netloc:
        raise BadConfiguration("witness: must name the server, as in postgresql://user@host:5432/database")
    dsn = urlunsplit(parts._replace(query=urlencode(query)))
    where = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    return PostgresWitness(dsn, where, cluster_id, allow_weak == "1")


class PostgresWitness:
    """A row of the table stanchion_lease."""

    needs_renewal = True

    def __init__(self, dsn: str, where: str, cluster_id: bytes, allow_weak: bool) -> None:
        self._dsn = dsn
        self._where = where
        self._cluster_id = cluster_id
        self._allow_weak = allow_weak
        self._turn = asyncio.Lock()
        self._connection: Any = None
        self._was_fine = False

    def describe(self) -> str:
        """Say where the row is."""
        weak = ", which may run without fsync and then forgets at a power cut" if self._allow_weak else ""
        return f"A row in PostgreSQL at {self._where}{weak}."

    async def read(self) -> Lease | None:
        """Return the row; raises WitnessUnreachable, and BadConfiguration for a server that was never any good."""
        row = await self._ask(READ, self._cluster_id)
        return None if row is None else Lease(*row)

    async def swap(self, seen: Lease | None, wanted: Lease) -> Lease | None:
        """Insert or update in one statement, which waits for the server's disk."""
        stored = successor(seen, wanted)
        row = await self._ask(INSERT if seen is None else UPDATE, self._cluster_id, *stored)
        return None if row is None else stored

    async def is_abandoned(self, seen: Lease, unchanged_s: float, lease_s: float) -> bool:
        """Return whether the lease has run out."""
        return unchanged_s >= lease_s

    async def close(self) -> None:
        """End the connection, politely if the server answers."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await connection.close(timeout=TIMEOUT_S)

    async def _ask(self, statement: str, *values: object) -> Any:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._turn:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = None
                        self._connection = await self._connect()
                    return await self._connection.fetchrow(statement, *values)
                except BaseException:
                    self._drop()
                    raise
        except asyncpg.ClientConfigurationError as error:
            raise BadConfiguration(f"witness: {error}") from None
        except TimeoutError:
            raise WitnessUnreachable(f"{self._where} gave no answer within {TIMEOUT_S:g} s") from None
        except _REFUSALS as error:
            raise self._unfit(str(error)) from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise WitnessUnreachable(f"{self._where}: {error or type(error).__name__}") from None

    def _drop(self) -> None:
        """Forget the connection: what is under way on it may still happen, but no answer of it is taken for another."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connect(self) -> Any:
        connection = await asyncpg.connect(self._dsn, timeout=TIMEOUT_S, server_settings=SERVER_SETTINGS)
        try:
            session = await connection.fetchrow(SESSION)
            if session["is_secondary"]:
                raise self._unfit("is a secondary, which may lag behind; name the primary")
            if session["is_weak"] and not self._allow_weak:
                raise self._unfit(
                    "runs with fsync=off and may forget who the primary is; ?allow_weak=1 takes it anyway"
                )
            if session["is_new"]:
                with suppress(*_MADE_MEANWHILE):  # another process was about it at the same moment
                    await connection.execute(TABLE)
        except BaseException:
            connection.terminate()
            raise
        self._was_fine = True
        return connection

    def _unfit(self, why: str) -> BadConfiguration | WitnessUnreachable:
        """Return the error for a server that must not be used: a wrong setting at first, a changed server later."""
        if self._was_fine:
            return WitnessUnreachable(f"{self._where}: {why}")
        return BadConfiguration(f"witness: {self._where}: {why}")
