"""Keys that are good for little, secrets that nobody finds, and the log of who did what."""

import base64
import json
import subprocess
from pathlib import Path

import pytest

from cli.client import Platform
from tests.support.apps import App
from tests.support.platform import PROGRAM, Up, family

SECRET = "xyzzy-the-plain-text-of-a-secret"
FUNCTION = {
    "shop/handler.py": "import os\ndef handle(request):\n    return str(len(os.environ['SHOP_TOKEN']))\n",
    "pilotlight.toml": '[functions.shop]\nsecrets = ["SHOP_TOKEN"]\naccess = "key"\n',
}


def make_key(up: Up, name: str, *flags: str) -> tuple[str, str]:
    done = up.run("keys", "create", name, *flags, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return made["id"], made["key"]


def status(up: Up, key: str, path: str) -> int:
    with Platform(up.url, key).request("GET", path) as answer:
        return answer.status


def findings(up: Up, text: str, *but: Path) -> list[str]:
    """List where a text stands: in files of the platform, in what it logged, in what it was started with."""
    found = [each.command for each in family(up.process.pid) if text in each.command]
    files = [up.log, *(each for each in up.data.root.rglob("*") if each.is_file())]
    return found + [str(each) for each in files if each not in but and text.encode() in each.read_bytes()]


def test_a_life_with_keys_and_secrets(up):
    assert up.run("secrets", "set", "SHOP_TOKEN", stdin=SECRET).returncode == 0
    app = App.make(up, "shop", FUNCTION)
    app.deploy()
    front_id, front = make_key(up, "front", "--scope", "invoke", "--app", "shop", "--expires", "90d")
    _, data = make_key(up, "data", "--scope", "data", "--app", "shop")
    assert status(up, front, "/function/shop") == 200
    assert status(up, data, "/function/shop") == 403
    assert status(up, data, "/data/v1/carts") == 200
    assert status(up, data, "/data/v1/carts?app=other") == 403
    assert status(up, front, "/api/v1/functions") == 403

    shown = up.run("keys", "list").stdout
    assert any(
        line.split()[1:4] == ["front", "invoke", "shop"] and "-" in line.split()[4]
        for line in shown.splitlines()
    ), shown

    kept = (app.folder / ".git" / "pilotlight-key").read_text().rpartition(" ")[2].strip().strip('"')
    assert status(up, kept, "/api/v1/functions/shop/logs") == 200
    assert status(up, kept, "/api/v1/secrets") == 403
    elsewhere = app.git("push", f"{up.url}/git/elsewhere.git", "main")
    assert elsewhere.returncode != 0
    assert "403" in elsewhere.stderr

    assert up.run("keys", "delete", front_id).returncode == 0
    assert status(up, front, "/function/shop") == 403
    assert "SHOP_TOKEN" in up.run("secrets", "list").stdout.split()
    assert up.run("delete", "shop").returncode == 0

    admin = up.data.admin_key.read_text().strip()
    assert findings(up, SECRET) == []
    assert findings(up, base64.b64encode(SECRET.encode()).decode()) == []
    for key in (front, data, kept):
        assert findings(up, key) == []
    assert findings(up, admin, up.data.admin_key) == []
    assert findings(up, up.data.secrets_key.read_text().strip(), up.data.secrets_key) == []

    entries = json.loads(up.run("audit", "--json", "--tail", "100").stdout)
    about = ({"secret": "SHOP_TOKEN"}, {"app": "shop"}, {"id": front_id})
    mine = [each for each in entries if any(part.items() <= each["details"].items() for part in about)]
    assert [each["action"] for each in mine if each["details"].get("scopes") != ["deploy"]] == [
        "secret.set",
        "app.deploy",
        "key.create",
        "key.create",
        "key.delete",
        "function.delete",
    ]
    assert "secret.list" in [each["action"] for each in entries]
    (deploy,) = [each for each in mine if each["action"] == "app.deploy"]
    assert deploy["by"]["name"].startswith("git remote on ")
    assert deploy["by"]["address"] == "127.0.0.1"
    assert deploy["by"]["request_id"]
    assert deploy["details"]["commit"] == app.git("rev-parse", "HEAD").stdout.strip()
    assert list(deploy["details"]["revisions"]) == ["shop"]
    (withdrawn,) = [each for each in mine if each["action"] == "key.delete"]
    assert withdrawn["details"] == {"id": front_id, "key": "front"}
    assert "secret.set" in up.run("audit").stdout
    assert up.data.audit.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("flag", "value"), [("--expires", "soon"), ("--expires", "0d"), ("--scope", "root")])
def test_a_key_that_cannot_be_is_refused_with_what_was_expected(up, flag, value):
    done = up.run("keys", "create", "x", flag, value)
    assert done.returncode in (1, 2)
    assert "90d" in done.stderr or "deploy" in done.stderr


def test_a_command_that_is_refused_says_whose_key_it_sent(up, monkeypatch):
    _, weak = make_key(up, "weak", "--scope", "invoke")
    kept = up.environment
    for key, why in ((weak, "pilotlight keys create NAME --scope admin."), ("x", "those that are valid.")):
        monkeypatch.setattr(up, "environment", lambda key=key: kept() | {"PILOTLIGHT_KEY": key})
        done = up.run("keys", "list")
        assert done.returncode != 0
        assert f"{why} The key was that of PILOTLIGHT_KEY." in " ".join(done.stderr.split())
        assert "admin.key" not in done.stderr
    monkeypatch.setattr(up, "environment", kept)
    up.data.admin_key.rename(up.data.root / "aside")
    done = up.run("keys", "list")
    (up.data.root / "aside").rename(up.data.admin_key)
    assert f"else from admin.key in the data folder ({up.data.root})" in " ".join(done.stderr.split())


def test_a_lost_key_of_the_secrets_stops_the_start_until_they_are_forgotten(tmp_path):
    with Up(tmp_path / "platform") as up:
        key = tmp_path / "elsewhere.key"
        assert up.run("secrets", "set", "TOKEN", stdin=SECRET).returncode == 0
        running = up.run("secrets", "discard")
        assert running.returncode == 1
        assert "in use" in running.stderr
        assert up.stop() == 0
        key.write_bytes(up.data.secrets_key.read_bytes())
        key.chmod(0o600)
        up.data.secrets_key.unlink()
        assert up.start() == ""
        assert "can't be read: TOKEN" in up.log.read_text()
        assert not up.data.secrets_key.exists()

        up.flags = ("--secrets-key", str(key))
        assert up.start().startswith("Pilotlight is ready")
        assert up.run("secrets", "list").stdout.split() == ["TOKEN"]
        assert up.stop() == 0

        up.flags = ()
        assert up.run("secrets", "discard").stdout == "Forgotten: TOKEN\n"
        assert up.start().startswith("Pilotlight is ready")
        assert up.run("secrets", "list").stdout == ""
        assert up.stop() == 0


def test_a_repository_gets_the_key_of_who_can_make_no_others(up):
    _, narrow = make_key(up, "ci", "--scope", "deploy", "--app", "narrow")
    _, useless = make_key(up, "caller", "--scope", "invoke")
    folder = up.folder / "apps" / "narrow"
    folder.mkdir(parents=True)
    app = App(up, folder)
    app.git("init", "--quiet", "--initial-branch=main")
    for key, code in ((useless, 1), (narrow, 0)):
        done = subprocess.run(
            [*PROGRAM, "remote", "add"],
            cwd=folder,
            env=up.environment() | {"PILOTLIGHT_URL": up.url, "PILOTLIGHT_KEY": key},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("scope deploy" in done.stderr) is bool(code)
    assert narrow in (folder / ".git" / "pilotlight-key").read_text()
    app.commit({"handler.py": "def handle(request):\n    return 'hi'\n"})
    app.deploy()


def test_the_first_key_can_be_withdrawn_and_another_takes_its_place_at_the_next_start(tmp_path):
    with Up(tmp_path / "platform") as up:
        first = up.data.admin_key.read_text().strip()
        (known,) = json.loads(up.run("keys", "list", "--json").stdout)
        last = up.run("keys", "delete", known["id"])
        assert last.returncode == 1
        assert "last key" in last.stderr
        _, other = make_key(up, "other")
        assert up.run("keys", "delete", known["id"]).returncode == 0
        assert "withdrawn" in up.run("list").stderr
        assert up.stop() == 0
        assert up.start().startswith("Pilotlight is ready")
        assert up.run("list").returncode == 0
        assert up.data.admin_key.read_text().strip() not in (first, other)
        assert up.data.admin_key.stat().st_mode & 0o777 == 0o600
        assert [status(up, key, "/api/v1/keys") for key in (first, other)] == [403, 200]
        assert up.stop() == 0
