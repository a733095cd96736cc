"""Redises of the tests' own that stand in for each other: with sentinels, or as a Cluster."""

import contextlib
import socket
import subprocess
import tempfile
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import ConnectionError as NotThere
from redis import Redis
from redis.crc import key_slot

from tests.support.platform import free_port, wait_until
from tests.support.redis_server import RedisServer, place, running

_BOUNDS = (0, 5461, 10922, 16384)  # of the slots of three masters


def client(server: RedisServer) -> "Redis[Any]":
    return Redis(unix_socket_path=str(server.path), decode_responses=True)


def ask(server: RedisServer, *words: object) -> Any:
    with client(server) as connection:
        return connection.execute_command(*words)


def copied(server: RedisServer, key: str = "copied") -> None:
    """Wait until all replicas have all that a server has; the key is one that the server may hold."""
    with client(server) as connection:
        replicas = connection.info("replication")["connected_slaves"]
        connection.set(key, "")
        assert connection.wait(replicas, 30_000) == replicas > 0


def replicate(server: RedisServer, command: str, *words: object) -> None:
    """Make a server a replica, and wait until it has everything."""
    ask(server, command, *words)
    wait_until(lambda: ask(server, "INFO", "replication").get("master_link_status") == "up")


@dataclass
class Sentinels:
    """A master with replicas, and a sentinel that has one of them take over."""

    servers: list[RedisServer]
    port: int  # of the sentinel
    nobody: int  # where another one is named
    password: str  # of the sentinel, if any
    service: str = "pilot"
    authority: str = ""  # the file with whose certificate all speak TLS, if they do

    def url(self, database: int = 0, service: str = "") -> str:
        """Return where they are; of the sentinels that are named the first is not there."""
        hosts = f"127.0.0.1:{self.nobody},127.0.0.1:{self.port}"
        return f"{_scheme(self.authority)}+sentinel://{hosts}/{service or self.service}/{database}" + (
            _trusting(self.authority)
        )

    def master(self) -> RedisServer:
        """Return what the sentinel names."""
        with self.sentinel() as sentinel:
            _, port = sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)
        return next(server for server in self.servers if server.port == int(port))

    def sentinel(self) -> "Redis[Any]":
        tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": self.authority} if self.authority else {}
        return Redis("127.0.0.1", self.port, password=self.password or None, decode_responses=True, **tls)

    def replicas(self) -> int:
        """Return how many the sentinel would have take over."""
        with contextlib.suppress(NotThere), self.sentinel() as sentinel:
            told = sentinel.sentinel_slaves(self.service)
            return sum(each["flags"] == "slave" and each["master-link-status"] == "ok" for each in told)
        return -1


class Cluster:
    """A Cluster of three masters, which share the slots evenly; and a replica of who holds a store, if any."""

    def __init__(
        self,
        folder: Path,
        stack: contextlib.ExitStack,
        dead_after: float,
        store: str,
        settings: Mapping[str, str],
    ) -> None:
        # With a short time-out they are quicker to agree
        self._settings = {**_QUICK, "cluster_enabled": "yes", "cluster_node_timeout": "1000", **settings}
        self._authority = settings.get("tls_ca_cert_file", "")
        self.masters = [self._start(folder / str(number), stack) for number in range(3)]
        self.replica = self._start(folder / "replica", stack) if store else None
        self.servers = [*self.masters, *([self.replica] if self.replica else [])]
        for number, server in enumerate(self.masters):
            ask(server, "CLUSTER ADDSLOTS", *range(_BOUNDS[number], _BOUNDS[number + 1]))
            ask(server, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            ask(self.masters[0], "CLUSTER MEET", "127.0.0.1", server.port)
        wait_until(lambda: all(self._complete(server, len(self.servers)) for server in self.servers))
        for server in self.servers:
            ask(server, "CONFIG SET", "cluster-node-timeout", f"{dead_after * 1000:.0f}")
        if self.replica is not None:
            replicate(self.replica, "CLUSTER REPLICATE", ask(self.holding(store), "CLUSTER MYID"))

    def _start(self, folder: Path, stack: contextlib.ExitStack) -> RedisServer:
        folder.mkdir()
        where = place(_port_of_a_node(), self._settings)
        return stack.enter_context(running(folder, **self._settings, **where))

    @staticmethod
    def _complete(server: RedisServer, nodes: int) -> bool:
        told = ask(server, "CLUSTER INFO")
        return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == nodes

    def url(self, _database: int = 0) -> str:
        hosts = f"127.0.0.1:{self.masters[0].port},127.0.0.1:{self.masters[2].port}"
        return f"{_scheme(self._authority)}+cluster://{hosts}{_trusting(self._authority)}"

    def holding(self, store: str) -> RedisServer:
        """Return the master that holds a store, as long as nothing has moved."""
        return self.masters[bisect(_BOUNDS, slot(store)) - 1]


def _scheme(authority: str) -> str:
    return "rediss" if authority else "redis"


def _trusting(authority: str) -> str:
    return f"?ssl_ca_certs={authority}" if authority else ""


def slot(store: str) -> int:
    return key_slot(f"{{pilotlight:{store}}}".encode())


_QUICK = {"appendonly": "no", "bind": "127.0.0.1", "repl_diskless_sync_delay": "0"}


def _port_of_a_node() -> int:
    """Return a free port, 10,000 above which there is a free one, too: nodes talk to each other there."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + 10_000)):
            return port


@contextlib.contextmanager
def sentinels(
    replicas: int = 1, dead_after: float = 2.0, password: str = "", **settings: str
) -> Iterator[Sentinels]:
    """Have a master, replicas and a sentinel meanwhile.

    `dead_after` are the seconds without a sign of life after which a replica takes over, `password` is that of
    the sentinel, and settings are those of all servers.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = []
        for number in range(1 + replicas):
            home = Path(folder, str(number))
            home.mkdir()
            where = place(free_port(), settings)
            servers.append(stack.enter_context(running(home, **where, **_QUICK, **settings)))
        for server in servers[1:]:
            replicate(server, "REPLICAOF", "127.0.0.1", servers[0].port)
        authority = settings.get("tls_ca_cert_file", "")
        group = Sentinels(servers, free_port(), free_port(), password, authority=authority)
        own = {name: value for name, value in settings.items() if name.startswith("tls_")}
        where = place(group.port, own)
        file = Path(folder, "sentinel.conf")
        file.write_text(
            f"bind 127.0.0.1\ndir {folder}\n"
            + "".join(f"{name.replace('_', '-')} {value}\n" for name, value in {**own, **where}.items())
            + f"sentinel monitor {group.service} 127.0.0.1 {servers[0].port} 1\n"
            f"sentinel down-after-milliseconds {group.service} {dead_after * 1000:.0f}\n"
            f"sentinel failover-timeout {group.service} 10000\n"
            + (f"requirepass {password}\n" if password else "")
        )
        words = ("redis-server", str(file), "--sentinel")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: group.replicas() == replicas)
        yield group


@contextlib.contextmanager
def cluster(store: str = "", dead_after: float = 3.0, **settings: str) -> Iterator[Cluster]:
    """Have a Cluster meanwhile."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        yield Cluster(Path(folder), stack, dead_after, store, settings)
