"""Packages that attack while they are installed, on a whole platform: build back ends, scripts, requirements.

What they find is in the layer afterwards, and so are their answers.
"""

import json
import shutil
import socket

import pytest

from tests.support.apps import App, call
from tests.support.attacks import processes_with
from tests.support.platform import Up, family, left_behind

BACKEND = '''
"""A build back end: pip runs it to make the wheel of a package."""
import http.client, json, os, socket, subprocess, zipfile

def attempt(action, *arguments):
    try:
        return repr(action(*arguments))[:60]
    except OSError as error:
        return error.strerror or str(error)

def through_the_proxy(url):
    host, port = os.environ["HTTPS_PROXY"].removeprefix("http://").strip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", url)
    return connection.getresponse().status

def look():
    status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
    return {
        "files": [attempt(open, path) for path in FILES],
        "write": [attempt(open, path, "w") for path in ("/source/x", "/etc/x", "/usr/x", "/tools/python-build/build.py")],
        "host": [attempt(socket.create_connection, address, 5) for address in (("127.0.0.1", PORT), ("1.1.1.1", 443))],
        "proxy": [attempt(through_the_proxy, url) for url in ("http://127.0.0.1:PORT/", "http://169.254.169.254/", "http://example.com/")],
        "capabilities": int(status["CapEff"], 16),
        "filter": status["Seccomp"].strip(),
        "keys": [name for name in os.environ if "KEY" in name or "SECRET" in name or name.startswith("PILOTLIGHT")],
        "unshare": subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode != 0,
    }

def build_wheel(folder, settings=None, metadata=None):
    subprocess.Popen(["sleep", "7658"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
    files = {
        "found_by_evil.json": json.dumps(look()),
        "evil-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: evil\\nVersion: 1\\n",
        "evil-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: evil\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "evil-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(os.path.join(folder, "evil-1-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "evil-1-py3-none-any.whl"

def get_requires_for_build_wheel(settings=None):
    return []
'''
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "evil"\nversion = "1"\n'
HANDLER = """
import importlib.resources, json, pathlib
def handle(request):
    return pathlib.Path("/dependencies/found_by_evil.json").read_text()
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with Up(tmp_path_factory.mktemp("packages") / "platform") as up:
        yield up
        processes = family(up.process.pid)
        assert up.stop() == 0
        assert left_behind(up.data, processes) == []
        assert list(up.data.builds.iterdir()) == []


def hidden(up: Up) -> list[str]:
    """Return files of the host that no build may see."""
    paths = (up.data.admin_key, up.data.registry, up.data.root / "secrets.key")
    return ["/etc/shadow", *map(str, paths), "/root/.ssh", "/proc/kcore", "/run/docker.sock"]


def sleeping() -> list[str]:
    return processes_with(b"sleep\x007658\x00", "cmdline")


def test_a_build_back_end_finds_nothing_and_reaches_nothing(up):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        backend = BACKEND.replace("FILES", repr(hidden(up))).replace("PORT", str(port))
        files = {
            "handler.py": HANDLER,
            "requirements.txt": "/source/evil\n",
            "evil/backend.py": backend,
            "evil/pyproject.toml": PROJECT,
        }
        app = App.make(up, "backend", files)
        app.deploy()
        found = json.loads(call(up, "backend").body)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert set(found["files"]) == {"No such file or directory"}
    assert set(found["write"]) <= {"Read-only file system", "Permission denied", "No such file or directory"}
    assert found["host"] == ["Connection refused", "Network is unreachable"]
    assert found["proxy"] == ["403", "403", "403"]
    assert (found["capabilities"], found["filter"], found["keys"]) == (0, "2", [])
    assert found["unshare"]
    assert sleeping() == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("out-of-here", "-r ../../../..{folder}/data/admin.key"),
        ("absolute", "-r /etc/shadow"),
        ("a-file", "file://{folder}/data/admin.key"),
        ("metadata", "evil @ http://169.254.169.254/evil.zip"),
        ("a-repository", "evil @ git+file://{folder}/data/repositories/backend.git"),
    ],
)
def test_requirements_that_lead_elsewhere_are_refused_and_tell_nothing(up, name, line):
    line = line.format(folder=up.folder)
    done = App.make(up, name, {"handler.py": HANDLER, "requirements.txt": f"{line}\n"}).push()
    assert done.returncode != 0
    assert "[remote rejected]" in done.stderr
    assert up.data.admin_key.read_text().strip() not in done.stderr
    assert "root:" not in done.stderr


NODE_HANDLER = """
import fs from "node:fs";
export default function () {
  return new Response(fs.readFileSync("/dependencies/found.json", "utf8"));
}
"""
SCRIPT = """
const fs = require("fs"), child = require("child_process"), net = require("net");
const attempt = (action) => { try { return String(action()); } catch (error) { return error.code; } };
child.spawn("sleep", ["7658"], {detached: true, stdio: "ignore"}).unref();
const connect = (options) => new Promise((done) => {
  const socket = net.connect(options, () => done("connected"));
  socket.on("error", (error) => done(error.code));
});
(async () => {
  const found = {
    files: FILES.map((path) => attempt(() => fs.readFileSync(path))),
    write: ["/source/x", "/etc/x", "/usr/x"].map((path) => attempt(() => fs.writeFileSync(path, "x"))),
    host: [await connect({host: "127.0.0.1", port: PORT}), await connect({host: "1.1.1.1", port: 443})],
    status: fs.readFileSync("/proc/self/status", "utf8"),
    secrets: Object.keys(process.env).filter((name) => /^PILOTLIGHT|SECRET|ADMIN/.test(name)),
  };
  fs.writeFileSync("found.json", JSON.stringify(found));
})();
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="this machine has no npm")
def test_scripts_of_a_package_find_nothing_and_reach_nothing(up):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        script = SCRIPT.replace("FILES", json.dumps(hidden(up))).replace(
            "PORT", str(listener.getsockname()[1])
        )
        package = {
            "name": "scripts",
            "version": "1.0.0",
            "dependencies": {"evil": "file:/source/evil"},
            "scripts": {"preinstall": "node /source/evil/look.js", "postinstall": "cat /etc/shadow; true"},
        }
        files = {
            "handler.mjs": NODE_HANDLER,
            "package.json": json.dumps(package),
            "evil/package.json": json.dumps({"name": "evil", "version": "1.0.0"}),
            "evil/look.js": script,
        }
        app = App.make(up, "scripts", files)
        app.deploy()
        assert sleeping() == []
        found = json.loads(call(up, "scripts").body)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert set(found["files"]) == {"ENOENT"}
    assert set(found["write"]) <= {"EROFS", "EACCES"}
    assert found["host"] == ["ECONNREFUSED", "ENETUNREACH"]
    status = dict(line.split(":", 1) for line in found["status"].splitlines())
    assert (int(status["CapEff"], 16), status["Seccomp"].strip()) == (0, "2")
    assert found["secrets"] == []
