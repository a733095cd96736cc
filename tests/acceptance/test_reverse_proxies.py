"""Behind a reverse proxy that is set up as docs/HTTPS.md says: real Caddy, real nginx."""

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from tests.acceptance.test_https import make
from tests.support.apps import App
from tests.support.platform import ROOT, Up, free_port, wait_until

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
MANIFEST = """
[functions.telling]
access = "public"

[functions.dripping]
access = "public"
handler = "handler:app"
concurrency = 2
max_instances = 1
"""
TELLING = """
import json

def handle(request):
    told = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
    return json.dumps({name: request.headers.get(name) for name in told} | {"length": len(request.body)})
"""
DRIPPING = """
import asyncio

go = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"].endswith("/go"):
        go.set()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    else:
        await go.wait()
    await send({"type": "http.response.body", "body": b"last"})
"""


@dataclass
class Known(Up):
    """A platform whose users trust the certificate of the proxy."""

    certificate: Path = Path()

    def environment(self) -> dict[str, str]:
        trusted = dict.fromkeys(("SSL_CERT_FILE", "GIT_SSL_CAINFO"), str(self.certificate))
        return {**super().environment(), **trusted}


@dataclass(frozen=True)
class Proxied:
    """A platform and the proxy in front of it."""

    up: Known
    port: int

    def connection(self, source: str = "127.0.0.1") -> HTTPSConnection:
        trust = ssl.create_default_context(cafile=self.up.certificate)
        return HTTPSConnection("127.0.0.1", self.port, context=trust, source_address=(source, 0), timeout=60)


def documented(language: str) -> str:
    """Return the configuration that the page shows."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/HTTPS.md").read_text(), re.DOTALL)
    return str(text)


def adapted(text: str, replacements: dict[str, str]) -> str:
    """Replace what depends on the place; each must be there."""
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, upstream: int, certificate: Path, key: Path) -> list[str]:
    server = adapted(
        documented("nginx"),
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:8080": f"127.0.0.1:{upstream}",
            "/etc/letsencrypt/live/functions.example.com/fullchain.pem": str(certificate),
            "/etc/letsencrypt/live/functions.example.com/privkey.pem": str(key),
        },
    )
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}{server}}}\n"
    )
    return ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def caddy(folder: Path, port: int, upstream: int, certificate: Path, key: Path) -> list[str]:
    site = adapted(
        documented("caddy"),
        {
            "functions.example.com {": f"https://127.0.0.1:{port} {{\n\ttls {certificate} {key}",
            "127.0.0.1:8080": f"127.0.0.1:{upstream}",
        },
    )
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{site}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile")]


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    name = request.param.__name__
    if shutil.which(name, path=_PATH) is None:
        pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp(name)
    certificate, key = make(folder / "files", "functions.example.com")
    port, upstream = free_port(), free_port()
    flags = ("--port", str(upstream), "--public-url", f"https://127.0.0.1:{port}")
    place = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "HOME": str(folder)}
    with Known(folder / "platform", flags, certificate=certificate) as up:
        with (folder / "log").open("w") as log:
            proxy = subprocess.Popen(
                request.param(folder, port, upstream, certificate, key),
                env={"PATH": _PATH, **place},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            wait_until(lambda: _accepts(port) or proxy.poll() is not None)
            assert proxy.poll() is None, (folder / "log").read_text()
            yield Proxied(up, port)
        finally:
            proxy.terminate()
            proxy.wait(30)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def told(proxied: Proxied) -> Proxied:
    """Have the functions deployed, through the proxy."""
    files = {"pilotlight.toml": MANIFEST, "telling/handler.py": TELLING, "dripping/handler.py": DRIPPING}
    App.make(proxied.up, "functions", files).deploy()
    return proxied


def ask(
    proxied: Proxied, path: str, source: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, str]:
    with contextlib.closing(proxied.connection(source)) as connection:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_function_is_told_who_called_and_not_what_the_caller_makes_up(told: Proxied) -> None:
    forged = {
        "X-Forwarded-For": "192.0.2.1",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
    }
    status, text = ask(told, "/function/telling", "127.0.0.2", forged, b"x" * 3_000_000)
    assert status == 200
    assert json.loads(text) == {
        "x-forwarded-for": "127.0.0.2, 127.0.0.1",
        "x-forwarded-proto": "https",
        "x-forwarded-host": f"127.0.0.1:{told.port}",
        "length": 3_000_000,
    }


def test_an_answer_streams(told: Proxied) -> None:
    with contextlib.closing(told.connection()) as waiting, contextlib.closing(told.connection()) as going:
        waiting.request("GET", "/function/dripping")
        response = waiting.getresponse()
        assert response.read1() == b"first"
        going.request("GET", "/function/dripping/go")
        assert going.getresponse().read() == b"firstlast"
        assert response.read() == b"last"


@pytest.mark.parametrize("proxied", [nginx], indirect=True, ids=["nginx"])
def test_bodies_stream_both_ways_at_once(told: Proxied) -> None:
    with contextlib.closing(told.connection()) as connection:
        connection.putrequest("POST", "/function/dripping")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        connection.send(b"4\r\nmore\r\n")
        response = connection.getresponse()
        assert response.read1() == b"first"
        connection.send(b"0\r\n\r\n")
        assert response.read() == b"last"


def test_a_shell_opens_through_it(told: Proxied) -> None:
    done = told.up.run("shell", "telling", stdin="echo $((6 * 7)); exit 9")
    assert (done.returncode, done.stdout) == (9, "42\n"), done.stderr


def test_wrong_keys_are_counted_by_the_address_that_the_proxy_saw(told: Proxied) -> None:
    def attempt(source: str) -> int:
        return ask(told, "/api/v1/apps", source, {"Authorization": "Bearer wrong"})[0]

    wait_until(lambda: attempt("127.0.0.3") == HTTPStatus.TOO_MANY_REQUESTS)
    assert attempt("127.0.0.4") == HTTPStatus.FORBIDDEN
