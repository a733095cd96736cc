"""The machines of one platform: how they know each other.

Between machines everything goes over TLS 1.3, and both sides show a certificate. All have the same one, which
each makes of the key that they share: so whoever has the key is a machine of the platform, and nobody else.
"""

import datetime as dt
import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from pilotlight import key_file
from pilotlight.problems import Problem
from pilotlight.settings import Settings

_PURPOSE: Final = b"pilotlight machines, version 1\0"
_NAME: Final = "pilotlight"
_FROM: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_TO: Final = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280, 4.1.2.5: no end


class Machine(Struct, frozen=True):
    """One machine. `id` is that of its data folder, `address` is HOST:PORT, where its gateway is reached."""

    id: str
    address: str


@dataclass(frozen=True)
class Link:
    """What a process needs to serve other machines, and to reach them."""

    address: str  # of this machine
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return what the settings say; None where the platform has one machine. Raises Problem."""
        if not settings.machine_address:
            if settings.machines_key:
                raise Problem("invalid-request", "--machines-key says nothing without --machine-address.")
            return None
        if not settings.machines_key or not settings.secrets_key or settings.store == "sqlite":
            raise Problem(
                "invalid-request",
                "Several machines share a Redis (--store), the key by which they know each other "
                "(--machines-key), and the one that secrets are sealed with (--secrets-key): name all three.",
            )
        key = _key(Path(settings.machines_key))
        return cls(
            settings.machine_address,
            _context(ssl.PROTOCOL_TLS_SERVER, key),
            _context(ssl.PROTOCOL_TLS_CLIENT, key),
        )


def split(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _key(path: Path) -> bytes:
    try:
        return key_file.read(path, "machines")
    except FileNotFoundError:
        raise Problem("unavailable", f"{path} is missing. {key_file.made_by(path)}") from None


def _context(protocol: int, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # what counts is the key, not at which address somebody has it
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, private = _certificate(key)
    context.load_verify_locations(cadata=certificate.decode())
    descriptor = os.memfd_create("machines")  # OpenSSL takes files only
    try:
        os.write(descriptor, certificate + private)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _certificate(key: bytes) -> tuple[bytes, bytes]:
    """Return the certificate of a key, and its private key, as PEM: the same ones each time."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import NameOID

    private = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(_PURPOSE + key).digest())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(_FROM)
        .not_valid_after(_TO)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, None)
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def elsewhere(function: str, address: str) -> Problem:
    """Return the refusal of what another machine has to do; `machine_of` tells which one."""
    return Problem(
        "unavailable",
        f"The function {function!r} is at home on another machine, {address}, which does not answer. "
        "If this lasts, it moves by itself; try again in a moment.",
        retry_after=1,
        machine=address,
    )


def machine_of(problem: Problem) -> str | None:
    """Return the address of the machine that has to do what was refused, if that is why."""
    machine = problem.extra.get("machine")
    return machine if isinstance(machine, str) else None
