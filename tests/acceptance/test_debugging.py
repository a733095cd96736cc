"""`pilotlight dev --debug`: real debuggers stop a function in its sandbox, as an editor has them do it."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.support.dev import Dev, dev
from tests.support.nodes import nodes

MANIFEST = '[functions.shop]\npath = "inner"\naccess = "public"\ntimeout = "500ms"\nmemory = "64MB"\n'
PYTHON = """import os

def handle(request):
    name = request.path[1:]
    answer = f"hello {name}"
    return answer
"""
NODE = """export default async function handle(request) {
  const name = new URL(request.url).pathname.slice(1);
  const answer = `hello ${name}`;
  return new Response(answer);
}
"""
ENOUGH = 1.5  # seconds, three times what the function has by its manifest


@contextlib.contextmanager
def debugged(
    folder: Path, file: str, source: str, *flags: str, manifest: str = MANIFEST
) -> Iterator[tuple[Dev, dict[str, Any]]]:
    """Run a function so, and yield what launch.json is told to say."""
    top = folder / "shop"
    (top / "inner").mkdir(parents=True)
    (top / "pilotlight.toml").write_text(manifest)
    (top / "inner" / file).write_text(source)
    with dev(top, folder / "temporary", flags=("--debug", *flags)) as running:
        running.until('"request": "attach"')
        yield running, next(json.loads(line) for line in running.said if '"request": "attach"' in line)


class Call(threading.Thread):
    """A call under way."""

    def __init__(self, running: Dev, target: str) -> None:
        super().__init__()
        self._running = running
        self._target = target
        self.answer = ""
        self.start()

    def run(self) -> None:
        self.answer = self._running.answer(self._target)

    def ended(self) -> str:
        self.join(30)
        return self.answer


class Editor:
    """A client of the Debug Adapter Protocol."""

    def __init__(self, address: dict[str, Any]) -> None:
        self._socket = socket.create_connection((address["host"], address["port"]), timeout=120)
        self._file = self._socket.makefile("rb")
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, command: str, **arguments: Any) -> int:
        self._number += 1
        request = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(request).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return self._number

    def _receive(self) -> dict[str, Any]:
        length = 0
        while line := self._file.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        assert length, "the debugger has hung up"
        return json.loads(self._file.read(length))

    def answered(self, number: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        while True:
            message = self._receive()
            if message["type"] == "response" and message["request_seq"] == number:
                assert message["success"], message
                return message.get("body", {})
            self._events.append(message)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.answered(self.send(command, **arguments))

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event."""
        while True:
            for message in self._events:
                if message.get("event") == name:
                    self._events.remove(message)
                    return message.get("body", {})
            self._events.append(self._receive())

    def attach(self, configuration: dict[str, Any], path: str, line: int) -> None:
        """Attach as launch.json says, and stop at a line."""
        self.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True)
        attaching = self.send("attach", **configuration)
        self.event("initialized")
        (set_,) = self.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}])[
            "breakpoints"
        ]
        assert set_["verified"], set_
        self.ask("configurationDone")
        self.answered(attaching)


def test_debugpy_stops_a_call_which_no_time_out_kills(tmp_path):
    with debugged(tmp_path, "handler.py", PYTHON) as (running, configuration):
        running.until("/function/shop")
        assert configuration["type"] == "debugpy"
        file = str(tmp_path / "shop/inner/handler.py")
        with Editor(configuration["connect"]) as editor:
            editor.attach(configuration, file, 6)
            for name in ("ada", "bob"):
                call = Call(running, f"shop/{name}")
                stopped = editor.event("stopped")
                assert stopped["reason"] == "breakpoint"
                top = editor.ask("stackTrace", threadId=stopped["threadId"])["stackFrames"][0]
                assert (top["line"], top["source"]["path"], top["name"]) == (6, file, "handle")
                began = time.monotonic()
                while name == "ada" and time.monotonic() - began < ENOUGH:
                    found = editor.ask("evaluate", expression="answer", frameId=top["id"])
                    assert found["result"] == f"'hello {name}'"
                editor.ask("setExpression", expression="answer", value=f"'changed {name}'", frameId=top["id"])
                editor.ask("continue", threadId=stopped["threadId"])
                assert call.ended() == f"changed {name}"
        assert running.answer("shop/eve") == "hello eve"  # an editor that has gone holds nothing up


def test_after_a_save_the_editor_attaches_to_the_new_code(tmp_path):
    with debugged(tmp_path, "handler.py", PYTHON) as (running, configuration):
        file = tmp_path / "shop/inner/handler.py"
        with Editor(configuration["connect"]) as editor:
            editor.attach(configuration, str(file), 6)
        file.write_text(PYTHON.replace("hello", "good morning"))
        running.until_it_answers("shop/x", "good morning x")
        with Editor(configuration["connect"]) as editor:
            editor.attach(configuration, str(file), 5)
            call = Call(running, "shop/y")
            stopped = editor.event("stopped")
            editor.ask("continue", threadId=stopped["threadId"])
            assert call.ended() == "good morning y"


@pytest.mark.parametrize("node", nodes())
async def test_nodes_inspector_stops_a_call_at_a_port_that_was_chosen(tmp_path, node):
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]  # in use
        manifest = f'{MANIFEST}runtime = "{node.name}"\n'
        running, configuration = stack.enter_context(
            debugged(tmp_path, "handler.mjs", NODE, "--debug-port", str(port), manifest=manifest)
        )
        running.until("/function/shop")
        assert port < configuration["port"] < port + 100
        assert (configuration["type"], configuration["remoteRoot"]) == ("node", "/function")
        assert configuration["localRoot"] == str(tmp_path / "shop/inner")
        place = f"http://{configuration['address']}:{configuration['port']}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{place}/json/list") as listed:
                (target,) = await listed.json(content_type=None)
            async with session.ws_connect(target["webSocketDebuggerUrl"]) as inspector:
                await _inspect(inspector, running)
        assert running.answer("shop/eve") == "hello eve"


async def _inspect(inspector: aiohttp.ClientWebSocketResponse, running: Dev) -> None:
    numbers = iter(range(1, 1000))
    events: list[dict[str, Any]] = []

    async def ask(method: str, **parameters: Any) -> dict[str, Any]:
        number = next(numbers)
        await inspector.send_json({"id": number, "method": method, "params": parameters})
        while (message := await inspector.receive_json(timeout=120)).get("id") != number:
            events.append(message)
        assert "error" not in message, message
        return message["result"]

    async def event(method: str) -> dict[str, Any]:
        while not any(each.get("method") == method for each in events):
            events.append(await inspector.receive_json(timeout=120))
        found = next(each for each in events if each.get("method") == method)
        events.remove(found)
        return found["params"]

    await ask("Runtime.enable")
    await ask("Debugger.enable")
    set_ = await ask("Debugger.setBreakpointByUrl", url="file:///function/handler.mjs", lineNumber=3)
    assert len(set_["locations"]) == 1
    scripts = [each for each in events if each.get("method") == "Debugger.scriptParsed"]
    call = Call(running, "shop/ada")
    paused = await event("Debugger.paused")
    top = paused["callFrames"][0]
    assert paused["hitBreakpoints"] == [set_["breakpointId"]]
    script = next(s for s in scripts if s["params"]["scriptId"] == top["location"]["scriptId"])
    assert (script["params"]["url"], top["location"]["lineNumber"]) == ("file:///function/handler.mjs", 3)
    began = time.monotonic()
    while time.monotonic() - began < ENOUGH:
        found = await ask("Debugger.evaluateOnCallFrame", callFrameId=top["callFrameId"], expression="answer")
        assert found["result"]["value"] == "hello ada"
    await ask("Debugger.resume")
    assert call.ended() == "hello ada"
