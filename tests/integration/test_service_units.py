"""packaging/: systemd takes the units, and the platform works with what the system's unit leaves it."""

import configparser
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.apps import App, call
from tests.support.platform import ROOT, Up

PACKAGING = ROOT / "packaging"
UNITS = sorted(path for path in PACKAGING.rglob("*") if path.suffix in {".service", ".timer"})
HANDLER = "def handle(request):\n    return open('/tmp/x', 'w').write('here') and 'here'\n"


def unit(name: str) -> configparser.SectionProxy:
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str
    parsed.read(PACKAGING / name)
    return parsed["Service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: str(path.relative_to(PACKAGING)))
def test_systemd_takes_each_unit(path, tmp_path):
    for each in UNITS:
        if each.parent == path.parent:  # a timer needs its service; neither is installed here
            text = re.sub(r"(/opt|%h)/pilotlight/\.venv/bin/pilotlight", "/bin/true", each.read_text())
            (tmp_path / each.name).write_text(text)
    mode = "--user" if path.parent.name == "user" else "--system"
    done = subprocess.run(
        ["systemd-analyze", mode, "--man=no", "verify", str(tmp_path / path.name)],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if path.name in line]) == (0, [])


class AsAUnit(Up):
    """`up` as systemd starts it by the unit, as far as that can be had without systemd."""

    def command(self, *words: str) -> list[str]:
        service = unit("pilotlight.service")
        kept = service["CapabilityBoundingSet"].lower().replace("cap_", "+").split()
        assert service["NoNewPrivileges"] == "yes"
        assert service["ProtectSystem"] == "full"
        readonly = [path for path in ("/usr", "/boot", "/etc", "/root", "/home") if Path(path).is_dir()]
        mounts = "".join(
            f"mount --rbind {path} {path}; mount -o remount,bind,ro {path}; " for path in readonly
        )
        inside = f'mount --make-rslave /; {mounts}exec "$@"'
        return [
            *("unshare", "--mount", "sh", "-ec", inside, "sh"),
            *("setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(kept)}"),
            *words,
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be bounded like a service of the system")
def test_the_platform_works_with_what_the_unit_leaves_it(tmp_path, monkeypatch):
    told = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(told))
        monkeypatch.setenv("NOTIFY_SOCKET", str(told))
        with AsAUnit(tmp_path / "platform") as up:
            systemd.settimeout(60)
            assert systemd.recv(1000).decode() == f"READY=1\nSTATUS=Serving {up.url}"
            App.make(up, "shop", {"handler.py": HANDLER, "requirements.txt": ""}).deploy()
            assert call(up, "shop").body == b"here"
            with up.platform.request("PUT", "/data/v1/things/a?app=shop", b"1") as response:
                assert response.status == 201
            shell = up.run("shell", "shop", "--", "echo", "hello")
            assert (shell.returncode, shell.stdout) == (0, "hello\n")
            plain = Up(tmp_path / "plain")
            with plain:
                kept = [each["name"] for each in _guarantees(plain) if each["kept"]]
            assert [each["name"] for each in _guarantees(up) if each["kept"]] == kept
            assert up.stop() == 0


def _guarantees(up: Up) -> list[dict]:
    return up.platform.get("/api/v1/guarantees")["guarantees"]
