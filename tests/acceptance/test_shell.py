"""`pilotlight shell`: a real terminal in a sandbox, or plain pipes, for whoever may deploy the function."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from runtimes.declaration import load_all
from tests.support.apps import App, call
from tests.support.platform import PROGRAM, Up, family

HANDLER = "def handle(request):\n    return 'fine'\n"
PERL = """#!/usr/bin/perl
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ENV{PORT}, Listen => 9) or die $!;
while (my $client = $listener->accept) { close $client; }
"""


@pytest.fixture(scope="module")
def hello(up: Up) -> str:
    App.make(up, "hello", {"handler.py": HANDLER}).deploy()
    return "hello"


@dataclass
class Terminal:
    """A `pilotlight shell` that somebody has at a terminal, and what it shows."""

    pid: int
    descriptor: int
    shown: str = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: str) -> str:
        """Wait until it shows something; return and forget all that it has shown."""
        deadline = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.shown += os.read(self.descriptor, 4096).decode()
        shown, self.shown = self.shown, ""
        return shown

    def raw(self) -> bool:
        """Tell whether each key is passed on as it is typed."""
        return not termios.tcgetattr(self.descriptor)[3] & termios.ICANON

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        with contextlib.suppress(OSError):  # nobody has the terminal any more
            while os.read(self.descriptor, 4096):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def terminal(up: Up, *words: str, **variables: str) -> Iterator[Terminal]:
    pid, descriptor = pty.fork()
    if pid == 0:
        environment = up.environment() | {"TERM": "vt100"} | variables
        os.execve(PROGRAM[0], [*PROGRAM, "shell", *words], environment)
    opened = Terminal(pid, descriptor)
    opened.resize(30, 90)
    try:
        yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(descriptor)


def shells(up: Up) -> list[dict]:
    return [each for each in json.loads(up.run("ps", "--json").stdout) if each["state"] == "shell"]


def gone(up: Up) -> None:
    deadline = time.monotonic() + 30
    while shells(up):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_terminal_it_is_plain(up, hello):
    done = up.run("shell", hello, stdin="ls; echo no >&2; exit 4")
    assert done.stdout.split() == ["__pycache__", "handler.py"]
    assert (done.stderr, done.returncode) == ("no\n", 4)


def test_a_command_of_ones_own(up, hello):
    done = up.run("shell", hello, "--", "sh", "-c", 'echo "$0 $1"; tty', "-x", "a  b")
    assert (done.stdout, done.returncode) == ("-x a  b\nnot a tty\n", 1)
    assert up.run("shell", hello, "--", "nosuch").returncode == 127


@pytest.mark.parametrize("runtime", ["native", "node"])
def test_other_languages(up, runtime):
    if runtime == "node" and not load_all()["node"].find():
        pytest.skip("this machine has no Node")
    files = {"native": {"handler": PERL}, "node": {"handler.mjs": "export default () => new Response('');\n"}}
    App.make(up, f"in-{runtime}", files[runtime]).deploy()
    assert up.run("shell", f"in-{runtime}", "--", "ls").stdout.split() == list(files[runtime])


def test_a_terminal_of_the_callers_size_at_which_ctrl_c_goes_to_the_program(up, hello):
    with terminal(up, hello) as opened:
        opened.until("$ ")
        assert opened.raw()
        opened.type("stty size; echo $TERM; tty\n")
        assert "30 90\r\nvt100\r\n" in opened.until("/dev/pts/0\r\n")
        opened.resize(40, 100)
        deadline = time.monotonic() + 30
        opened.type("stty size\n")
        while "40 100" not in opened.until("$ "):  # it is told a moment later
            assert time.monotonic() < deadline
            opened.type("stty size\n")
        opened.type("sleep 4711.0625\n")
        while not [p for p in family(up.process.pid) if p.command.startswith("sleep 4711.0625")]:
            assert time.monotonic() < deadline
        opened.type("\x03")
        opened.until("^C")
        opened.type("echo still $((40 + 2))\n")
        opened.until("still 42\r\n")
        opened.type("exit 6\n")
        assert opened.wait() == 6


def test_it_is_seen_and_ends_with_a_command_that_is_killed(up, hello):
    before = json.loads(up.run("audit", "--json").stdout)
    with terminal(up, hello) as opened:
        opened.until("$ ")
        (listed,) = shells(up)
        assert listed["function"] == hello
        assert " shell " in up.run("ps").stdout
        processes = family(up.process.pid)
        opened.type("sleep 4711.375 &\n")
        opened.until("$ ")
        os.kill(opened.pid, signal.SIGKILL)
        gone(up)
    assert not [p for p in family(up.process.pid) if p.command and "4711.375" in p.command]
    assert len(family(up.process.pid)) <= len(processes)
    (entry,) = json.loads(up.run("audit", "--json").stdout)[len(before) :]
    assert (entry["action"], entry["outcome"], entry["by"]["name"]) == ("function.shell", "done", "admin")
    assert (entry["details"]["function"], entry["details"]["command"]) == (hello, "/bin/sh")


def test_the_callers_terminal_is_as_before_when_it_is_told_to_end(up, hello):
    with terminal(up, hello) as opened:
        opened.until("$ ")
        assert opened.raw()
        os.kill(opened.pid, signal.SIGTERM)
        assert opened.wait() == 143
    gone(up)


def test_ctrl_c_ends_it_where_it_does_not_open(up):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with terminal(up, "hello", PILOTLIGHT_URL=url, PILOTLIGHT_KEY="x") as opened:
            known, _ = silent.accept()
            with known:
                known.recv(65536)
                known.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            asked, _ = silent.accept()
            with asked:
                assert b"/hello/shell" in asked.recv(65536)
                assert not opened.raw()
                opened.type("\x03")
                assert opened.wait() == 130


def test_what_it_is_refused_for_is_said(up, hello):
    done = up.run("shell", "nosuch")
    assert (done.returncode, "no function named 'nosuch'" in done.stderr) == (1, True)
    other = json.loads(
        up.run("keys", "create", "other", "--scope", "deploy", "--app", "other", "--json").stdout
    )
    own = json.loads(up.run("keys", "create", "own", "--scope", "deploy", "--app", hello, "--json").stdout)
    for key, code in ((other, 1), (own, 0)):
        done = subprocess.run(
            [*PROGRAM, "shell", hello, "--", "true"],
            env=up.environment() | {"PILOTLIGHT_URL": up.url, "PILOTLIGHT_KEY": key["key"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("scope deploy for the app 'hello'" in done.stderr) == (code == 1)


def test_the_function_serves_meanwhile_and_a_new_revision_too(up, hello):
    with terminal(up, hello) as opened:
        opened.until("$ ")
        assert call(up, hello).text == "fine"
        assert len(shells(up)) == 1


def test_a_shell_ends_with_its_function(up):
    App.make(up, "brief", {"handler.py": HANDLER}).deploy()
    with terminal(up, "brief") as opened:
        opened.until("$ ")
        assert up.run("delete", "brief", stdin="y\n").returncode == 0
        opened.until("its function was deleted")
        assert opened.wait() == 137
