"""Samples that need neither packages nor data answer what their expected.http says, on the shims alone."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtimes import conformance
from runtimes.declaration import load_all

ROOT = Path(conformance.__file__).parents[1]
sys.path.append(str(ROOT / "samples"))

import expected  # noqa: E402

RUNTIMES = load_all()


@contextlib.contextmanager
def on_a_shim(runtime, arguments, sample, handler):
    found = RUNTIMES[runtime].find()
    if not found:
        pytest.skip(f"this machine has no {RUNTIMES[runtime].title}")
    command = (found[0].executable, *arguments)
    with (
        conformance.running(conformance.Subject(command, sample, handler)) as shim,
        shim.connect() as connection,
    ):
        yield connection


@contextlib.contextmanager
def on_its_own(program):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([program], env={**os.environ, "PORT": str(port)}, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", port), timeout=20)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                assert process.poll() is None
        with conformance.Connection(client) as connection:
            yield connection
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def replay(sample, connection):
    for exchange in expected.read(sample):
        fields = [f"{name}: {value}" for name, value in exchange.headers.items()]
        reply = connection.ask(exchange.method, exchange.target, exchange.body, *fields)
        assert exchange.differences(reply.status, reply.headers, reply.body) == [], exchange.title


PYTHON = ("-I", "-S", str(ROOT / "runtimes/python/shim/pilotlight_shim.py"))
NODE = (str(ROOT / "runtimes/node/shim/shim.mjs"),)


@pytest.mark.parametrize(
    ("name", "runtime", "arguments", "handler"),
    [
        ("hello-python", "python", PYTHON, "handler:handle"),
        ("stream", "python", PYTHON, "handler:handle"),
        ("hello-node", "node", NODE, "handler.mjs"),
    ],
)
def test_a_sample_answers_what_it_should(name, runtime, arguments, handler):
    sample = ROOT / "samples" / name
    with on_a_shim(runtime, arguments, sample, handler) as connection:
        replay(sample, connection)


def test_the_native_sample_answers_what_it_should():
    sample = ROOT / "samples/hello-native"
    with on_its_own(sample / "handler") as connection:
        replay(sample, connection)


@pytest.mark.parametrize("program", ["samples/hello-native/handler", "runtimes/native/template/handler"])
def test_a_native_program_frames_its_messages(program):
    with on_its_own(ROOT / program) as connection:
        connection.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert connection.reply().status == 200
        assert connection.ask("POST", "/", b"x" * 100_000).status == 200
        assert connection.ask("HEAD", "/").body == b""
        assert connection.ask("GET", "/", b"", "Connection: close").status == 200
        assert connection.ended()


def test_every_sample_says_what_it_answers():
    for manifest in (ROOT / "samples").glob("*/pilotlight.toml"):
        assert expected.read(manifest.parent)
