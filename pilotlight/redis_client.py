"""The clients of a Redis: of one server, of the master that sentinels name, or of a Cluster.

`connect` alone decides which; all of them are redis-py's, and are used alike. What they tell when something
goes wrong is turned into words here.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.backoff import NoBackoff

from pilotlight.problems import Problem
from pilotlight.redis_address import Address

CONNECTIONS: Final = 16
"""How many a client has. Who asks sees to it that no more are needed at once: that one would be refused."""

_CONNECT: Final = 2.0  # seconds for a connect; there may be others to try
_ASK: Final = 2.0  # seconds that a sentinel has, or the master that it names, to tell its role
_CHECK_AFTER: Final = 10  # seconds; a connection that was idle for longer is tried before it is used
_OLDEST: Final = (6, 2)

FAILURES: Final = (exceptions.RedisError, exceptions.RedisClusterException)
"""What the clients raise."""

_CLUSTER: Final = (
    exceptions.RedisClusterException,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.AskError,
)


def connect(address: Address, name: str) -> Redis | RedisCluster:
    """Return a client, which connects when it is used, under that name. Raises Problem `invalid-request`."""
    # Deadlines are the caller's: the client's own way loses cancellations on Python 3.11. So is it to make a
    # write again whose answer was lost, as it may have been made
    ours: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": _CONNECT,
        "health_check_interval": _CHECK_AFTER,
        "retry": Retry(NoBackoff(), 0),
        "client_name": name,
    }
    try:
        how: dict[str, Any] = parse_url(address.server) | ours
        pool = ConnectionPool(**how, max_connections=CONNECTIONS)
        pool.connection_class(**pool.connection_kwargs)  # knows what options there are
        if address.kind == "server":
            return Redis.from_pool(pool)
        tls = how.pop("connection_class", None) is SSLConnection
        for first in ("host", "port"):
            how.pop(first, None)
        return (_cluster if address.kind == "cluster" else _master)(address, tls, how)
    except (ValueError, TypeError, *FAILURES) as error:
        detail = f"The address of the Redis at {address.shown} can't be used: {error}"
        raise Problem("invalid-request", detail) from error


def _cluster(address: Address, tls: bool, how: dict[str, Any]) -> RedisCluster:
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
        require_full_coverage=False,  # a store is in one slot
        # Else each fifth call that is sent elsewhere ends the connections that others are using
        reinitialize_steps=0,
        ssl=tls,
        **how,
    )


def _master(address: Address, tls: bool, how: dict[str, Any]) -> Redis:
    sentinels = _Sentinels(address, how | ({"connection_class": SSLConnection} if tls else {}))
    pool = _MasterPool(  # type: ignore[no-untyped-call]
        address.service, sentinels, **how, ssl=tls, max_connections=CONNECTIONS
    )
    return Redis.from_pool(pool)


class _Sentinels:
    """What redis-py's pool asks where the master is.

    A sentinel is believed where the server that it names takes itself for the master, too
    (https://redis.io/docs/latest/develop/reference/sentinel-clients/).
    """

    def __init__(self, address: Address, how: Mapping[str, Any]) -> None:
        self._nodes = list(address.nodes)
        self._server = {**how, "decode_responses": True}
        self._sentinel = {**self._server, "username": None, "password": None, "db": 0, **address.sentinels}
        self._asked: dict[tuple[str, int], Redis] = {}  # with one connection each

    async def discover_master(self, service: str) -> tuple[str, int]:
        """Return host and port of the master.

        Raises MasterNotFoundError, which tells what speaks against each that was asked.
        """
        said: list[str] = []
        tried: set[tuple[str, int]] = set()
        for node in list(self._nodes):
            try:
                named: tuple[str, int] | None = await self._ask(
                    node, self._sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", service
                )
                if not named:
                    raise MasterNotFoundError(f"{_shown(node)} knows no service {service!r}")
                if named in tried:
                    continue
                tried.add(named)
                role, *_ = await self._ask(named, self._server, "ROLE")
                if role != "master":
                    raise MasterNotFoundError(f"{_shown(node)} names {_shown(named)}, which is a {role}")
            except MasterNotFoundError as error:
                said.append(str(error))
                continue
            self._nodes.remove(node)  # who was right is asked first the next time
            self._nodes.insert(0, node)
            return named
        raise MasterNotFoundError("; ".join(said))

    async def _ask(self, node: tuple[str, int], how: Mapping[str, Any], *command: str) -> Any:
        if node not in self._asked:
            pool = BlockingConnectionPool(1, timeout=None, host=node[0], port=node[1], **how)
            self._asked[node] = Redis.from_pool(pool)
        try:
            async with asyncio.timeout(_ASK):
                return await self._asked[node].execute_command(*command)  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            raise MasterNotFoundError(f"{_shown(node)} does not answer") from error
        except exceptions.RedisError as error:
            raise MasterNotFoundError(f"{_shown(node)}: {error}") from error

    async def aclose(self) -> None:
        """End the connections."""
        for server in self._asked.values():
            await server.aclose()


class _MasterPool(SentinelConnectionPool):
    """Connections to the master."""

    async def get_master_address(self) -> tuple[str, int]:
        """Find the master, and leave the former one. Raises MasterNotFoundError."""
        former = self.master_address
        found: tuple[str, int] = await super().get_master_address()  # type: ignore[no-untyped-call]
        if former not in (None, found):  # it has left alone the connections that are in use
            await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        return found

    async def aclose(self) -> None:
        """End all connections, those to the sentinels, too."""
        await super().aclose()
        await self.sentinel_manager.aclose()


async def keep_to_master(redis: Redis | RedisCluster) -> None:
    """Leave a master for the one that sentinels name by now, if they do: it may not know yet.

    Raises what the clients raise.
    """
    if isinstance(redis, Redis) and isinstance(redis.connection_pool, _MasterPool):
        await redis.connection_pool.get_master_address()


def _shown(node: tuple[str, int]) -> str:
    return f"{node[0]}:{node[1]}"


class Script:
    """A script in Lua, which is sent where Redis does not have it yet."""

    def __init__(self, redis: Redis | RedisCluster, text: str) -> None:
        self._redis = redis
        self._text = text
        self._digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  Redis names scripts so

    async def __call__(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """Run it where the keys are; in a Cluster they have to be in one slot."""
        try:
            return await self._redis.evalsha(self._digest, len(keys), *keys, *arguments)
        except exceptions.NoScriptError:  # SCRIPT LOAD would need all nodes of a Cluster
            return await self._redis.eval(self._text, len(keys), *keys, *arguments)


async def look_again(redis: Redis | RedisCluster) -> None:
    """Have the client of a Cluster find out anew who holds what: from silence it does not learn."""
    if isinstance(redis, RedisCluster):
        with contextlib.suppress(*FAILURES):
            await redis.aclose()


async def holding(redis: Redis | RedisCluster, key: bytes) -> dict[str, Any]:
    """Return what a command without keys needs besides, to be asked of the server that holds a key."""
    if not isinstance(redis, RedisCluster):
        return {}
    await redis.initialize()
    return {"target_nodes": redis.get_node_from_key(key.decode())}


def check_server(server: Mapping[str, Any], where: str) -> None:
    """Raise Problem `unavailable` where a Redis, by its INFO, is too old, or none that keeps anything."""
    text = str(server["redis_version"])
    if tuple(int(part) for part in text.split(".")[:2]) < _OLDEST:
        raise Problem("unavailable", f"The Redis at {where} is {text}. Take 6.2 or a newer one.")
    if server.get("redis_mode") == "sentinel":
        raise Problem(
            "unavailable", f"What is at {where} is a sentinel: write redis+sentinel://HOST:PORT,…/SERVICE/0."
        )


def problem(error: Exception, where: str) -> Problem:
    """Turn what Redis or the way to it says into words that name the remedy."""
    text = str(error)
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        remedy = "It refuses us. Give user and password in the URL; the user needs ~* and +@all."
    elif isinstance(error, MasterNotFoundError):
        remedy = "No sentinel names a master that is there. Wait, or see to these:"
    elif "READONLY" in text or exceptions.ReadOnlyError in (type(error), type(error.__context__)):
        # Redis 6.2 tells it from within a script, and redis-py of a sentinels' master as a lost connection
        remedy = "It is a replica. Wait until it is none any more, or name the one that takes writes."
    elif isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return Problem(
            "unavailable",
            f"The Redis at {where} does not answer; what was to be written may have been written. "
            f"Start it, or wait. ({text})",
            retry_after=1,
        )
    elif isinstance(error, exceptions.OutOfMemoryError):
        remedy = "It is full. Raise its maxmemory, or delete something; nothing of this change was kept."
    elif isinstance(error, exceptions.MasterDownError):
        remedy = "It is a replica that has lost its master. Wait, or name the one that takes writes."
    elif "MISCONF" in text or "NOREPLICAS" in text:
        remedy = "It does not take writes as its disk or its replicas fail; see its log."
    elif isinstance(error, exceptions.MovedError):
        remedy = "It is a node of a Cluster: write redis+cluster://HOST:PORT,…"
    elif isinstance(error, _CLUSTER):
        remedy = (
            "Not all of the Cluster serves: nodes are away, or a slot is on its way to another one. Wait, or "
            "see what CLUSTER INFO says there; nothing of this change was kept."
        )
    else:
        return Problem("internal", f"The Redis at {where}: {text}")
    return Problem("unavailable", f"The Redis at {where}: {remedy} ({text})", retry_after=1)
