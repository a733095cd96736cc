"""A `pilotlight dev` that runs, as a developer has it in a terminal."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from tests.support.platform import PROGRAM, free_port


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
        deadline = time.monotonic() + 180
        while not any(text in line for line in self.said):
            with contextlib.suppress(Empty):
                self.said.append(self._lines.get(timeout=0.1))
            assert time.monotonic() < deadline, (text, self.said)

    def answer(self, name: str) -> str:
        with urllib.request.urlopen(f"{self.url}/function/{name}", timeout=30) as response:
            return response.read().decode()

    def until_it_answers(self, name: str, text: str) -> None:
        deadline = time.monotonic() + 180
        while self.answer(name) != text:
            assert time.monotonic() < deadline, self.said


@contextlib.contextmanager
def dev(
    folder: Path, temporary: Path, others: tuple[str, ...] = (), flags: tuple[str, ...] = ()
) -> Iterator[Dev]:
    """Run `dev` on a folder, and end it by Ctrl-C; nothing but `others` must be left."""
    temporary.mkdir(exist_ok=True)
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("GIT_SSL_CAINFO", None)
    process = subprocess.Popen(
        [*PROGRAM, "dev", str(folder), "--port", str(port), *flags],
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
