"""Private package indexes, of pip and of npm in one, that give nothing to strangers. They hold one package each."""

import base64
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

HOST = "127.0.0.2"  # this machine, but no address that programs in a sandbox reach without the proxy
USER, PASSWORD, TOKEN = "builder", "pass-w0rd", "npm-t0ken"
WHEEL = "private_thing-1.0-py3-none-any.whl"


def _wheel() -> bytes:
    info = "private_thing-1.0.dist-info"
    files = {
        "private_thing.py": "NAME = 'from the private index'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: private-thing\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return whole.getvalue()


def _tarball() -> bytes:
    files = {
        "package/package.json": json.dumps({"name": "private-thing", "version": "1.0.0", "main": "index.js"}),
        "package/index.js": "module.exports = 'from the private registry';\n",
    }
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return whole.getvalue()


class Registry:
    """Serves while it is entered."""

    def __init__(self) -> None:
        wheel, tarball = _wheel(), _tarball()
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        registry = self
        self.refused = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, body = "application/octet-stream", b""
                wanted = f"Bearer {TOKEN}" if self.path.startswith("/npm/") else basic
                if self.headers["Authorization"] != wanted:
                    registry.refused += 1
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="private"')
                elif self.path == "/simple/private-thing/":
                    kind, body = "text/html", f'<a href="../../{WHEEL}">{WHEEL}</a>'.encode()
                elif self.path == f"/{WHEEL}":
                    body = wheel
                elif self.path == "/npm/private-thing":
                    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
                    dist = {"tarball": f"{registry.url}/npm/thing.tgz", "integrity": integrity}
                    versions = {"1.0.0": {"name": "private-thing", "version": "1.0.0", "dist": dist}}
                    packument = {
                        "name": "private-thing",
                        "dist-tags": {"latest": "1.0.0"},
                        "versions": versions,
                    }
                    kind, body = "application/json", json.dumps(packument).encode()
                elif self.path == "/npm/thing.tgz":
                    body = tarball
                else:
                    self.send_response(404)
                if body:
                    self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def place(self) -> str:
        return f"{HOST}:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
