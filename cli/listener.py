"""The gateway's port: bound before privileges are dropped, and kept while the gateway restarts."""

import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from pilotlight import machines
from pilotlight.problems import Problem
from pilotlight.settings import Settings

if TYPE_CHECKING:
    import ssl

_BACKLOG = 4096
_LISTENING = "0A"  # the state in /proc/net/tcp, proc(5)


def bind(host: str, port: int) -> socket.socket:
    """Return a non-blocking socket that listens on host and port. Raises Problem where that can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise Problem(
            "invalid-request",
            f"{host!r} is no address of this machine: {error.strerror}. Name one with --host.",
        ) from error
    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Problem("conflict", _refusal(host, port, error)) from error
    return listener


def bind_for_machines(settings: Settings) -> socket.socket:
    """Return the socket on which other machines reach this one. Raises Problem where that can't be had."""
    try:
        return bind(*machines.split(settings.machine_address))
    except Problem as problem:
        detail = f"Other machines can't reach this one at {settings.machine_address} (--machine-address)."
        raise Problem(problem.kind, f"{detail} {problem.detail}") from problem


def url(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the address to reach a listener at from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  it is compared, not bound
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls(settings: Settings) -> "ssl.SSLContext | None":
    """Return what HTTPS is served with, or None where it is not. Raises Problem for files that won't do."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise Problem("invalid-request", "HTTPS needs both --tls-certificate and --tls-key.")
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for file in (certificate, key):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise Problem("invalid-request", f"{file} can't be read: {error.strerror}.") from error
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, _NeedsPassword) as error:
        reason = "the key has a password" if isinstance(error, _NeedsPassword) else error.reason or error
        raise Problem(
            "invalid-request",
            f"HTTPS can't be served with {certificate} and {key}: {reason}. Both must be PEM and belong "
            "together, and the key must have no password.",
        ) from error
    return context


class _NeedsPassword(Exception):  # noqa: N818
    """The key is encrypted: OpenSSL would ask at the terminal."""


def _no_password() -> str:
    raise _NeedsPassword


def is_free(host: str, port: int) -> bool:
    """Tell whether a port could be bound now."""
    try:
        bind(host, port).close()
    except Problem:
        return False
    return True


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        by = f" by {holder}" if holder else ""
        return f"Port {port} is in use{by}. Choose another one with --port, or end what uses it."
    if error.errno == errno.EACCES:
        return f"Port {port} is for root alone. Choose one from 1024 on with --port."
    return f"The gateway can't listen on {host} port {port}: {error.strerror}. Choose with --host, --port."


def _holder(port: int) -> str | None:
    """Name the process that listens on a port, as far as this user may see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            descriptors = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
            name = (process / "comm").read_text().strip()
        except OSError:  # another user's, or just ended
            continue
        if sockets.intersection(descriptors):
            return f"process {process.name} ({name})"
    return None


def _listening(port: int) -> list[str]:
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
        found += [
            row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port
        ]
    return found
