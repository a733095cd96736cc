"""`pilotlight dev`: what is saved runs, what fails is said, and nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from tests.support.platform import PROGRAM, family, free_port

MANIFEST = '[functions.shop]\npath = "."\naccess = "public"\n'
HANDLER = "def handle(request):\n    print('asked')\n    return {text!r}\n"


@dataclass
class Dev:
    """A `dev` that runs, and what it has said so far."""

    process: subprocess.Popen
    url: str
    said: list[str] = field(default_factory=list)
    _lines: Queue = field(default_factory=Queue)

    def listen(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def until(self, text: str) -> None:
        """Wait until it says something."""
        deadline = time.monotonic() + 60
        while not any(text in line for line in self.said):
            with contextlib.suppress(Empty):
                self.said.append(self._lines.get(timeout=0.1))
            assert time.monotonic() < deadline, (text, self.said)

    def answer(self, name: str) -> str:
        with urllib.request.urlopen(f"{self.url}/function/{name}", timeout=30) as response:
            return response.read().decode()

    def until_it_answers(self, name: str, text: str) -> None:
        deadline = time.monotonic() + 60
        while self.answer(name) != text:
            assert time.monotonic() < deadline, self.said


@contextlib.contextmanager
def dev(folder: Path, temporary: Path, others: tuple[str, ...] = ()) -> Iterator[Dev]:
    """Run `dev` on a folder, and end it by Ctrl-C; nothing but `others` must be left."""
    temporary.mkdir(exist_ok=True)
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("GIT_SSL_CAINFO", None)
    process = subprocess.Popen(
        [*PROGRAM, "dev", str(folder), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    running = Dev(process, f"http://127.0.0.1:{port}")
    listener = Thread(target=running.listen)
    listener.start()
    try:
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
        listener.join(30)
        process.stdout.close()
    assert code == 130
    assert [entry.name for entry in temporary.iterdir()] == list(others)


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
