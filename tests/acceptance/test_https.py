"""HTTPS from certificate files: served, deployed to and called, and renewed while it serves."""

import datetime as dt
import http.client
import ipaddress
import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.client import Platform
from pilotlight.problems import Problem
from tests.support.apps import App, call
from tests.support.platform import Up, service, wait_until

HANDLER = """
def handle(request):
    return request.headers["x-forwarded-proto"] + " " + request.text
"""


def make(folder: Path, name: str, password: bytes | None = None, days: int = 1) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that is signed by itself; return its file and that of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    folder.mkdir(exist_ok=True)
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, protection))
    (folder / "key.pem").chmod(0o600)
    return folder / "certificate.pem", folder / "key.pem"


def flags(certificate: Path, key: Path) -> tuple[str, ...]:
    return ("--tls-certificate", str(certificate), "--tls-key", str(key))


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("https")
    with Up(folder / "platform", flags(*make(folder / "files", "first"))) as up:
        yield up


def common_name(up: Up) -> str:
    """Return whom the certificate that is served now is for."""
    pem = ssl.get_server_certificate(("127.0.0.1", int(up.url.rpartition(":")[2])))
    (name,) = x509.load_pem_x509_certificate(pem.encode()).subject
    return str(name.value)


def test_a_function_is_pushed_and_called(secure):
    assert secure.url.startswith("https://127.0.0.1:")
    App.make(secure, "private", {"handler.py": HANDLER}).deploy()
    for body in (b"cold", b"warm", b"x" * 3_000_000):
        answer = call(secure, "private", method="POST", body=body)
        assert (answer.status, answer.text) == (200, "https " + body.decode())
    assert secure.run("list").returncode == 0
    assert secure.run("shell", "private", stdin="exit 9").returncode == 9


def test_who_does_not_know_the_certificate_does_not_trust_it(secure):
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{secure.url}/healthz", timeout=10)
    with pytest.raises(
        Problem, match=r"^The certificate of https://127\.0\.0\.1:\d+ is not accepted: self-signed"
    ):
        Platform(secure.url, None).get("/healthz")


def test_plain_http_gets_no_answer(secure):
    with pytest.raises((ConnectionError, urllib.error.URLError, http.client.HTTPException)):
        urllib.request.urlopen(secure.url.replace("https", "http") + "/healthz", timeout=10)


def test_a_renewed_certificate_is_taken_over_without_a_call_refused(secure):
    App.make(secure, "steady", {"handler.py": HANDLER}).deploy()
    make(secure.folder.parent / "files", "second")
    former = service(secure, "gateway")
    secure.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while common_name(secure) != "second":  # each is a connection, and none may be refused
        assert time.monotonic() < deadline, secure.log.read_text()
    while "second" not in seen(secure):
        assert time.monotonic() < deadline
    wait_until(lambda: not former.lives)  # until then it takes connections, too, with what it has
    assert call(secure, "steady").status == 200


def test_a_connection_that_agrees_on_tls_while_the_certificate_is_renewed_is_answered(tmp_path):
    with Up(tmp_path / "platform", flags(*make(tmp_path / "files", "one"))) as up:
        context = ssl.create_default_context(cadata=up.platform.certificate)
        deadline = time.monotonic() + 60
        up.process.send_signal(signal.SIGUSR1)
        while "action=stopping" not in up.log.read_text():
            assert time.monotonic() < deadline
            connection = socket.create_connection(("127.0.0.1", int(up.url.rpartition(":")[2])))
            time.sleep(0.05)  # as a network takes between one packet and the next
            with context.wrap_socket(connection, server_hostname="127.0.0.1") as agreed:
                agreed.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                assert agreed.recv(100).startswith(b"HTTP/1.1 200")


def seen(up: Up) -> str:
    """Return whom the certificate is for that the commands expect."""
    (name,) = x509.load_pem_x509_certificate(up.platform.certificate.encode()).subject
    return str(name.value)


def test_files_that_do_not_fit_are_refused_and_the_former_ones_stay(secure):
    before = common_name(secure)
    (secure.folder.parent / "files" / "key.pem").write_text("no key")
    secure.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while "All goes on as it was" not in secure.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert common_name(secure) == before


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("none", "needs both"),
        ("missing", "can't be read: No such file"),
        ("other", "must be PEM and belong"),
        ("locked", "the key has a password"),
        ("expired", "certificate has expired"),
    ],
)
def test_what_can_not_be_served_with_is_told_and_ends_the_start(tmp_path, broken, said):
    certificate, key = make(tmp_path / "one", "one", b"secret" if broken == "locked" else None)
    words = {
        "none": ("--tls-certificate", str(certificate)),
        "missing": flags(certificate, tmp_path / "nowhere.pem"),
        "other": flags(certificate, make(tmp_path / "two", "two")[1]),
        "locked": flags(certificate, key),
        "expired": flags(*make(tmp_path / "old", "old", days=-1)),
    }[broken]
    up = Up(tmp_path, words)
    assert up.start() == ""
    assert up.process.wait(60) == 1
    assert said in up.log.read_text()
    assert not re.search("secret|PRIVATE KEY", up.log.read_text())
    up.__exit__()
