"""`pilotlight backup` and `restore`, on real platforms: what comes back, and what is refused."""

import gzip
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest

from cli.backups import take
from pilotlight.settings import Settings
from tests.support.apps import App, call
from tests.support.platform import PROGRAM, Up, free_port, wait_until
from tests.support.redis_server import running

HANDLER = "import os, helper\ndef handle(request):\n    return helper.said + os.environ['TOKEN']\n"
FILES = {
    "handler.py": HANDLER,
    "helper.py": "said = 'one '\n",
    "pilotlight.toml": '[functions.shop]\nsecrets = ["TOKEN"]\n',
    "grüße/ß.txt": "",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """A platform with a function in two revisions, a secret, keys and documents."""
    with Up(tmp_path_factory.mktemp("backed"), ("--port", str(free_port()))) as up:
        assert up.run("secrets", "set", "TOKEN", stdin="t0ken").returncode == 0
        app = App.make(up, "shop", FILES)
        app.deploy()
        app.commit({"helper.py": "said = 'two '\n"})
        app.deploy()
        for number in range(30):
            assert document(up, "PUT", f"d{number:02}", "&ttl=5000" if number % 2 else "")[0] == 201
        yield up


@pytest.fixture(scope="module")
def backup(platform, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("backups") / "one.tar.gz"
    done = platform.run("backup", str(file))
    assert done.returncode == 0, done.stderr
    assert "functions: 1, revisions: 2, " in done.stdout
    assert "documents: 30, " in done.stdout
    assert "who reads it may do everything" in done.stderr
    return file


def document(up: Up, method: str, key: str, query: str = "") -> tuple[int, bytes]:
    body = b'{"n": 1}' if method == "PUT" else None
    with up.platform.request(method, f"/data/v1/things/{key}?app=shop{query}", body) as response:
        return response.status, response.read()


def documents(up: Up) -> list[dict]:
    with up.platform.request("GET", "/data/v1/things?app=shop&limit=1000") as response:
        return json.loads(response.read())["documents"]


def told(up: Up, *words: str) -> list:
    done = up.run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def restore(file: Path, folder: Path) -> subprocess.CompletedProcess:
    words = (*PROGRAM, "restore", str(file), "--data", str(folder))
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=100)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def tree(folder: Path) -> dict[str, tuple]:
    """Return what a function can see of the layers: each file's kind, mode and content."""
    seen: dict[str, tuple] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        what: object = path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        times = int(status.st_mtime) if path.is_file() else 0
        seen[str(path.relative_to(folder))] = (
            stat.S_IFMT(status.st_mode),
            stat.S_IMODE(status.st_mode),
            times,
            what,
        )
    return seen


def test_a_restored_platform_is_as_the_running_one_was_and_serves(platform, backup, tmp_path):
    again = Up(tmp_path / "again", ("--port", str(free_port())))
    done = restore(backup, again.data.root)
    assert done.returncode == 0, done.stderr
    assert "pilotlight up --data" in done.stdout
    for part in ("registry.db", "admin.key", "secrets.key", "audit.jsonl", "data/documents.db"):
        assert stat.S_IMODE((again.data.root / part).stat().st_mode) == 0o600, part
    restored, there = tree(again.data.layers), tree(platform.data.layers)
    assert restored.items() <= there.items()
    # Those of the machine are made anew, on what is then the machine
    assert {name.split("-")[0] for name in there.keys() - restored.keys()} <= {"container", "runtime"}
    with again:
        assert call(again, "shop").body == b"two t0ken"
        assert documents(again) == documents(platform)
        for words in (("keys", "list"), ("secrets", "list"), ("revisions", "shop")):
            assert told(again, *words) == told(platform, *words)
        changes = [each for each in told(platform, "audit") if each["action"] == "secret.set"]
        assert changes
        assert changes == [each for each in told(again, "audit") if each["action"] == "secret.set"]
        assert again.run("rollback", "shop").returncode == 0
        assert call(again, "shop").body == b"one t0ken"
        # The repository goes on where it was
        clone = App(again, tmp_path / "clone")
        key = again.data.admin_key.read_text().strip()
        url = f"http://x:{key}@{again.url.removeprefix('http://')}/git/shop.git"
        tmp_path.joinpath("clone").mkdir()
        assert clone.git("clone", "--quiet", url, ".").returncode == 0
        assert clone.git("rev-list", "--count", "HEAD").stdout == "2\n"
        clone.commit({"helper.py": "said = 'three '\n"})
        pushed = clone.push("origin", "main")
        assert pushed.returncode == 0, pushed.stderr
        assert call(again, "shop").body == b"three t0ken"


def test_the_file_is_its_owners_alone_and_nothing_lies_beside_it(backup):
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [path.name for path in backup.parent.iterdir()] == [backup.name]
    with tarfile.open(backup) as archive:
        names = archive.getnames()
    assert {"registry.db", "documents.db", "admin.key", "secrets.key", "audit.jsonl", "bundles/shop"} <= set(
        names
    )
    assert not [name for name in names if "logs" in name]


def test_a_key_of_the_secrets_that_is_used_no_more_is_not_passed_off_as_the_one_that_is(platform, tmp_path):
    file, key = tmp_path / "backup.tar.gz", tmp_path / "elsewhere.key"
    done = subprocess.run(
        [*PROGRAM, "backup", str(file)],
        capture_output=True,
        text=True,
        check=True,
        env=platform.environment() | {"PILOTLIGHT_SECRETS_KEY": str(key)},
    )
    assert platform.data.secrets_key.exists()
    assert "The key of the secrets is not in it" in done.stderr
    with tarfile.open(file) as archive:
        assert "secrets.key" not in archive.getnames()


def taken_meanwhile(platform: Up, file: Path) -> int:
    """Take a backup while documents are written and a push goes live; return how many were written."""
    ended = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not ended.is_set():
            assert document(platform, "PUT", f"w{len(written):05}")[0] == 201
            written.append(1)

    app = App.make(platform, "shop", {"handler.py": "def handle(request):\n    return 'busy'\n"})
    app.deploy()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: written)
        taking = subprocess.Popen(
            [*PROGRAM, "backup", str(file)], env=platform.environment(), stdout=subprocess.PIPE
        )
        app.commit({"more.py": ""})
        app.deploy()
        assert taking.communicate(timeout=100)[0]
        before = len(written)
        wait_until(lambda: len(written) > before)  # it goes on
    finally:
        ended.set()
        writer.join()
    return len(written)


def test_what_is_written_and_pushed_meanwhile_leaves_it_whole(tmp_path):
    with Up(tmp_path / "busy") as platform:
        written = taken_meanwhile(platform, tmp_path / "b")
    again = Up(tmp_path / "again")
    with again:  # its folders belong to its services already
        assert again.stop() == 0
        for path in again.data.root.rglob("*"):
            if not path.is_dir():
                path.unlink()
        for part in (again.data.layers, again.data.repositories):
            for left in part.iterdir():
                shutil.rmtree(left)
        done = restore(tmp_path / "b", again.data.root)
        assert done.returncode == 0, done.stderr
        assert again.start(), again.log.read_text()
        assert call(again, "shop").body == b"busy"
        kept = [each["key"] for each in documents(again) if each["key"].startswith("w")]
        assert kept == [f"w{number:05}" for number in range(len(kept))]
        assert len(kept) <= written
        assert document(again, "PUT", "new")[0] == 201


def changed(backup: Path, file: Path, change: str) -> None:
    """Write what has become of a backup."""
    whole = backup.read_bytes()
    plain = bytearray(gzip.decompress(whole))
    if change == "cut short":
        file.write_bytes(whole[: len(whole) * 2 // 3])
    elif change == "cut between members":
        with tarfile.open(backup) as archive:
            last = archive.getmembers()[-1]
        file.write_bytes(gzip.compress(plain[: last.offset] + bytes(1024), 1))
    elif change == "one bit":
        with tarfile.open(backup) as archive:
            at = archive.getmember("documents.db").offset_data + 5000
        plain[at] ^= 1
        file.write_bytes(gzip.compress(plain, 1))
    elif change == "not packed":
        file.write_bytes(plain)
    elif change == "another tar":
        with tarfile.open(file, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("hello"))
    elif change == "empty":
        file.write_bytes(b"")
    else:
        with tarfile.open(file, "w:gz") as archive:
            head = json.dumps({"format": 2, "pilotlight": "9.9", "made": 1}).encode()
            member = tarfile.TarInfo("pilotlight-backup.json")
            member.size = len(head)
            archive.addfile(member, io.BytesIO(head))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("cut short", "damaged, or was cut short"),
        ("cut between members", "its end is missing"),
        ("one bit", "not what was put into it"),
        ("not packed", "no backup of Pilotlight"),
        ("another tar", "no backup of Pilotlight"),
        ("empty", "no backup of Pilotlight"),
        ("newer", "made by a newer Pilotlight, 9.9"),
    ],
)
def test_what_is_no_whole_backup_is_refused_and_leaves_nothing(backup, tmp_path, change, said):
    changed(backup, tmp_path / "file", change)
    done = restore(tmp_path / "file", tmp_path / "data")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path / "data") == ["lock"]


@pytest.mark.parametrize("name", ["../out", "/out", "layers/../../out", "out/x", "."])
def test_a_file_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "target").mkdir()
    with tarfile.open(tmp_path / "file", "w:gz") as archive:
        head = json.dumps({"format": 1, "pilotlight": "0", "made": 1}).encode()
        member = tarfile.TarInfo("pilotlight-backup.json")
        member.size = len(head)
        archive.addfile(member, io.BytesIO(head))
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "target")
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo(name))
    done = restore(tmp_path / "file", tmp_path / "a" / "data")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["a/data/lock", "file"]


def test_nothing_that_is_there_is_overwritten(platform, backup, tmp_path):
    there = platform.run("backup", str(backup))
    assert there.returncode == 1
    assert "is there already" in there.stderr
    used = restore(backup, platform.data.root)
    assert used.returncode == 1
    assert "in use by another running platform" in used.stderr
    tmp_path.joinpath("data").mkdir()
    tmp_path.joinpath("data", "mine").write_text("")
    full = restore(backup, tmp_path / "data")
    assert full.returncode == 1
    assert "is not empty" in full.stderr
    assert "mine" in full.stderr


def test_a_restore_that_was_killed_starts_no_platform_and_is_done_by_the_next(backup, tmp_path):
    again = Up(tmp_path / "again")
    again.folder.mkdir()
    words = (*PROGRAM, "restore", str(backup), "--data", str(again.data.root))
    restoring = subprocess.Popen(words)
    wait_until((again.data.root / "restore.unfinished" / "registry.db").exists)
    restoring.send_signal(signal.SIGKILL)
    restoring.wait()
    assert not again.data.registry.exists()
    up = subprocess.run(
        (*PROGRAM, "up", "--data", str(again.data.root), "--port", "0"),
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert up.returncode == 1
    assert "interrupted" in up.stderr
    done = restore(backup, again.data.root)
    assert done.returncode == 0, done.stderr
    with again:
        assert call(again, "shop").body == b"two t0ken"
    assert not list(again.data.root.glob("*unfinished*"))


def end_in_its_midst(platform: Up, file: Path, number: int) -> None:
    """Begin a backup, and send it a signal before it is through; again where it was quicker."""
    part = file.with_name(f"{file.name}.part")
    while True:
        taking = subprocess.Popen(
            [*PROGRAM, "backup", str(file)], env=platform.environment(), stderr=subprocess.DEVNULL
        )
        wait_until(lambda: part.exists() or file.exists())
        taking.send_signal(number)
        taking.wait(60)
        if not file.exists():
            return
        file.unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_backup_that_is_stopped_leaves_nothing_and_one_that_was_killed_is_cleared_by_the_next(
    platform, tmp_path, number
):
    for ending in (number, signal.SIGKILL):
        end_in_its_midst(platform, tmp_path / "b", ending)
        assert [path.name for path in tmp_path.iterdir()] == ([] if ending == number else ["b.part"])
    assert platform.run("backup", str(tmp_path / "b")).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("step", ["os.open", "fcntl.flock"])
def test_a_backup_that_is_stopped_as_it_begins_leaves_nothing(tmp_path, monkeypatch, step):
    data = tmp_path / "data"
    data.mkdir()
    (data / "admin.key").write_text("pl_key\n")
    module, name = step.split(".")
    real = getattr(getattr(take, module), name)

    def stopped_here(*arguments):
        monkeypatch.setattr(f"cli.backups.take.{step}", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"cli.backups.take.{step}", stopped_here)
    with pytest.raises(KeyboardInterrupt):
        take.take(Settings(data=data), tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_platform_on_redis_is_backed_up_while_it_is_stopped_and_comes_back_on_files(tmp_path):
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), port=str(free_port())) as redis:
        store = ("--store", f"redis://:@127.0.0.1:{redis.port}/0")
        with Up(tmp_path / "one", store) as up:
            App.make(up, "shop", {"handler.py": "def handle(request):\n    return 'here'\n"}).deploy()
            assert document(up, "PUT", "a")[0] == 201
            before = documents(up)
            elsewhere = up.run("backup", str(tmp_path / "b"))
            assert elsewhere.returncode == 1
            assert f"keeps its state in 127.0.0.1:{redis.port}/0" in elsewhere.stderr
            runs = up.run("backup", str(tmp_path / "b"), *store)
            assert runs.returncode == 1
            assert "in use by another platform" in runs.stderr
            assert up.stop() == 0
            done = up.run("backup", str(tmp_path / "b"), *store)
            assert done.returncode == 0, done.stderr
    assert restore(tmp_path / "b", tmp_path / "two" / "data").returncode == 0
    with Up(tmp_path / "two") as two:
        assert call(two, "shop").body == b"here"
        assert documents(two) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_backup_of_a_stopped_platform_leaves_its_files_to_its_services(tmp_path):
    with Up(tmp_path / "one") as up:
        assert document(up, "PUT", "a")[0] == 201
        assert up.stop() == 0
        assert up.run("backup", str(tmp_path / "b")).returncode == 0
        assert up.start()
        assert document(up, "PUT", "b")[0] == 201
