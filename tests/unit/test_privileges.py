"""Leaving root behind: what is planned, and what such a process can really do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pilotlight import privileges
from pilotlight.privileges import SERVICE_UID, Veil, plan

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")

SCRIPT = """
import ctypes, json, os, pathlib, subprocess, sys
from pilotlight.privileges import SERVICE_UID, drop
own, other = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
# As a session may begin: with all capabilities inheritable
libc, version, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
assert libc.capget(version, sets) == 0
sets[2], sets[5] = sets[1], sets[4]
assert libc.capset(version, sets) == 0
drop(SERVICE_UID, [own])
(own / "written").write_text("here")
def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
child = subprocess.run([sys.executable, "-P", "-c", "import json, cli.main, aiohttp"], capture_output=True, text=True)
print(json.dumps({
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")],
    "no_new_privs": status["NoNewPrivs"].strip(),
    "again_root": attempt(lambda: os.setuid(0)),
    "other": attempt(lambda: other.read_text()),
    "code": attempt(lambda: (pathlib.Path(sys.prefix) / "written").write_text("")),
    "neighbours": sorted(entry.name for entry in own.parent.iterdir()),
    "child": child.stderr,
}))
"""


def test_nothing_is_covered_where_everything_can_be_reached():
    assert plan(SERVICE_UID, (Path("/usr/lib"),), ()) == []


def test_the_topmost_closed_folder_is_covered_and_what_is_needed_below_is_shown(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    needed = closed / "inner" / "needed"
    needed.mkdir(parents=True)
    monkeypatch.setattr(privileges, "_may_enter", lambda uid, folder: folder not in (closed, needed.parent))
    assert plan(SERVICE_UID, (needed,), ()) == [Veil(closed, (needed,))]


def test_a_path_through_a_link_is_shown_as_written_and_where_it_leads(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    real = closed / "real"
    real.mkdir(parents=True)
    link = closed / "link"
    link.symlink_to(real)
    monkeypatch.setattr(privileges, "_may_enter", lambda uid, folder: folder != closed)
    assert plan(SERVICE_UID, (link,), ()) == [Veil(closed, (link, real))]


@as_root
def test_a_service_is_an_ordinary_process_that_sees_only_what_is_its_own(tmp_path):
    closed = tmp_path / "closed"
    own = closed / "own"
    own.mkdir(parents=True)
    os.chown(own, SERVICE_UID, SERVICE_UID)
    secret = closed / "secret"
    secret.write_text("nobody else's business")
    closed.chmod(0o700)

    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(own), str(secret)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen == {
        "ids": [[SERVICE_UID] * 3, [SERVICE_UID] * 3, []],
        "capabilities": ["0000000000000000"] * 4,
        "no_new_privs": "1",
        "again_root": "PermissionError",
        "other": "FileNotFoundError",
        "code": "OSError" if seen["code"] == "OSError" else "PermissionError",
        "neighbours": ["own"],
        "child": "",
    }
    assert (own / "written").read_text() == "here"
    assert secret.read_text() == "nobody else's business"
