"""A Redis of the tests' own, on a Unix socket."""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform import free_port


class RedisServer:
    """A redis-server that keeps what it has in a folder, so that it can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "redis.sock"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: int = 0) -> str:
        return f"unix://{self.path}?db={database}"

    def start(self, **settings: str) -> None:
        """Start it; what is written lasts, unless settings say otherwise (`_` stands for `-`)."""
        lasting = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self.port = int(settings.get("port", "0"))
        place = {"port": "0", "unixsocket": str(self.path), "dir": str(self.folder)}
        text = "".join(
            f'{name.replace("_", "-")} "{value}"\n' for name, value in (lasting | place | settings).items()
        )
        self._process = subprocess.Popen(
            ["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Have it take connections, and answer nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("this machine has no redis-server (apt-get install redis-server)")
    server = RedisServer(folder)
    server.start(**settings)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def setting(store: str) -> Iterator[str]:
    """Return what `--store` is given for `sqlite`, or for a `redis` that runs meanwhile, where any user gets."""
    if store == "sqlite":
        yield store
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as server:
        yield f"redis://127.0.0.1:{server.port}/0"
