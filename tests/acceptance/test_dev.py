"""`pilotlight dev`: what is saved runs, what fails is said, and nothing is left behind."""

import os
import subprocess
import time

from tests.support.dev import dev
from tests.support.platform import PROGRAM, family, free_port

MANIFEST = '[functions.shop]\npath = "."\naccess = "public"\n'
HANDLER = "def handle(request):\n    print('asked')\n    return {text!r}\n"


def test_what_is_saved_is_live_and_what_it_prints_is_shown(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pilotlight.toml").write_text(MANIFEST)
    (folder / "handler.py").write_text(HANDLER.format(text="first"))
    with dev(folder, tmp_path / "temporary") as running:
        running.until("/function/shop")
        assert running.answer("shop") == "first"
        running.until("shop | asked")
        (folder / "handler.py").write_text(HANDLER.format(text="second"))
        running.until_it_answers("shop", "second")
        (folder / "handler.py").write_text("import nosuchmodule\n")
        running.until("nosuchmodule")
        assert running.answer("shop") == "second"  # what runs is left alone
        (folder / "handler.py").write_text(HANDLER.format(text="third"))
        running.until_it_answers("shop", "third")
    assert sorted(entry.name for entry in folder.iterdir()) == ["handler.py", "pilotlight.toml"]


def test_what_a_dev_that_was_killed_has_left_goes_with_the_next_one(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pilotlight.toml").write_text(MANIFEST)
    (folder / "handler.py").write_text(HANDLER.format(text="again"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "pilotlight-dev-anything-else").mkdir()
    command = [*PROGRAM, "dev", str(folder), "--port", str(free_port())]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    with killed:
        assert "ready" in killed.stdout.readline()
        before = family(killed.pid)
        killed.kill()
    deadline = time.monotonic() + 60
    while any(process.lives for process in before):  # they notice that it is gone
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (left,) = [entry for entry in temporary.iterdir() if (entry / "platform").exists()]
    with dev(folder, temporary, ("pilotlight-dev-anything-else",)) as running:
        running.until("/function/shop")
        assert not left.exists()
        assert running.answer("shop") == "again"


def test_a_repository_of_the_developers_own_is_not_touched(tmp_path):
    folder = tmp_path / "shop"
    (folder / "node_modules").mkdir(parents=True)
    (folder / "node_modules" / "junk.js").write_text("junk")
    (folder / "pilotlight.toml").write_text(MANIFEST)
    (folder / "handler.py").write_text(HANDLER.format(text="mine"))
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    before = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True).stdout
    with dev(folder, tmp_path / "temporary") as running:
        running.until("/function/shop")
        assert running.answer("shop") == "mine"
    assert subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True).stdout == before
    assert (
        subprocess.run([*git, "log"], check=False, capture_output=True).returncode != 0
    )  # no commit is there
