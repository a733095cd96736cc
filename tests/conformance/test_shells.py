"""What every engine promises of shells, tried in real sandboxes: as root, as an ordinary user, and on Docker."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from function_service import shell_frames as frames
from function_service.contract import Exit
from pilotlight.problems import Problem
from tests.support import service as support
from tests.support.attacks import NATIVE_PROBE, NODE_PROBE, appeared, kept
from tests.support.service import Service
from tests.support.shells import TERMINAL, run, shell

HELLO = {"handler.py": "def handle(request):\n    return 'hello'\n", "data/file.txt": "of the function\n"}
SHOW = ("python3", "-I", "-c", "import json, os; print(json.dumps(dict(os.environ)))")


@pytest_asyncio.fixture(params=support.engines(), scope="module", loop_scope="module")
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    async with support.running(request.param) as running:
        await running.client.vault.put_secret("TOKEN", "s3cret")
        await running.deploy("hello", HELLO)
        await running.deploy("native", {"server": NATIVE_PROBE}, runtime="native", handler="server")
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_command_sees_the_functions_files_and_its_exit_code_comes_back(service: Service) -> None:
    output, errors, ended = await run(
        service, "hello", "sh", "-c", "pwd; cat data/file.txt; echo no >&2; exit 7"
    )
    assert (output, errors, ended) == ("/function\nof the function\n", "no\n", Exit(7))


async def test_without_a_command_it_is_a_shell_that_reads_what_is_typed(service: Service) -> None:
    output, _, ended = await run(service, "hello", typed="echo one\necho two; exit 3\n")
    assert (output, ended) == ("one\ntwo\n", Exit(3))


async def test_environment_and_secrets_are_those_of_an_instance(service: Service) -> None:
    await service.deploy(
        "env",
        {"handler.py": support.PROBE},
        env={"LEVEL": "info"},
        secrets=("TOKEN",),
        egress=("example.org:443",),
    )
    seen = await service.probe("env", "import os\nresult = dict(os.environ)")
    output, _, _ = await run(service, "env", *SHOW)
    ours = json.loads(output)
    assert ours.pop("LC_CTYPE", seen.get("LC_CTYPE")) == seen.pop("LC_CTYPE", None)  # Python sets it itself
    assert ours == seen
    assert ours["TOKEN"] == "s3cret"
    output, _, _ = await run(service, "env", *SHOW, terminal=TERMINAL)
    assert json.loads(output)["TERM"] == "xterm"


async def test_it_works_for_every_runtime(service: Service) -> None:
    assert (await run(service, "native", "ls"))[0] == "server\n"
    assert json.loads((await run(service, "native", *SHOW))[0])["PORT"] == "8080"
    nodes = [name for name in await service.client.builds.runtimes() if name.startswith("node")]
    for name in nodes:
        await service.deploy("node", {"handler.mjs": NODE_PROBE}, runtime=name, handler="handler.mjs")
        assert (await run(service, "node", "ls"))[0] == "handler.mjs\n"


async def test_the_data_api_listens_in_it_as_in_an_instance(service: Service) -> None:
    source = "import socket\nsocket.create_connection(('127.0.0.1', 8001), 5).close()\nprint('reached')"
    assert (await run(service, "hello", "python3", "-c", source))[0] == "reached\n"


async def test_tmp_is_its_own_and_its_limits_are_the_functions(service: Service) -> None:
    await service.deploy("small", HELLO, memory=64 << 20)
    output, errors, _ = await run(
        service, "small", "sh", "-c", "touch /tmp/mine; touch no; ulimit -n; df -k /tmp | tail -1"
    )
    assert "Read-only file system" in errors
    assert output.split()[0] == "1024"
    assert int(output.split()[2]) == 32 << 10  # half of its memory
    if await kept(service, "memory limit of each function"):
        source = "b = bytearray(200 << 20)"
        _, _, ended = await run(service, "small", "python3", "-c", source)
        assert ended.code == 137
    if await kept(service, "limit of processes and threads"):
        _, errors, _ = await run(service, "small", "sh", "-c", "for i in $(seq 200); do sleep 20 & done")
        assert "fork" in errors


async def test_a_terminal_is_one(service: Service) -> None:
    async with shell(service, "hello", terminal=TERMINAL) as opened:
        opened.type("tty; stty size; echo on > /dev/tty\n")
        shown = await opened.until("on\r\n")
        assert "/dev/pts/0\r\n24 80\r\n" in shown
        opened.send(frames.WINDOW, frames.SIZE.pack(50, 132))
        opened.type("stty size\n")
        await opened.until("50 132\r\n")
        opened.type("exit 5\n")
        assert await opened.end() == Exit(5)


async def test_ctrl_c_goes_to_the_program_and_ctrl_d_ends_the_shell(service: Service) -> None:
    async with shell(service, "hello", terminal=TERMINAL) as opened:
        opened.type("echo begun; sleep 4711.0625; echo $?\n")
        await opened.until("begun\r\n")
        await appeared(b"\x004711.0625\0", 1)
        opened.type("\x03")
        await opened.until("$ ")
        opened.type("echo still here\n")
        await opened.until("still here\r\n")
        opened.type("\x04")
        assert (await opened.end()).code in (0, 130)


async def test_a_command_that_was_typed_too_early_is_not_lost(service: Service) -> None:
    async with shell(service, "hello", "sleep", "60", terminal=TERMINAL) as opened:
        opened.type("\x03")
        assert await opened.end() == Exit(130)


async def test_much_output_comes_as_a_whole_although_its_reader_is_slow(service: Service) -> None:
    async with shell(service, "hello", "sh", "-c", "head -c 3000000 /dev/zero; echo end") as opened:
        assert not opened.ending.done()
        assert await opened.end() == Exit(0)
        assert len(opened.output) == 3_000_004
    output, _, ended = await run(service, "hello", "head", "-c", "300000", "/dev/zero", terminal=TERMINAL)
    assert (len(output), ended) == (300_000, Exit(0))


async def test_much_input_comes_as_a_whole(service: Service) -> None:
    async with shell(service, "hello", "wc", "-c") as opened:
        for _ in range(40):
            opened.send(frames.INPUT, b"x" * 50_000)
            await opened.writer.drain()
        opened.send(frames.END)
        assert await opened.end() == Exit(0)
        assert opened.output == b"2000000\n"


async def test_what_it_leaves_in_the_background_does_not_keep_it_open(service: Service) -> None:
    output, _, ended = await run(service, "hello", "sh", "-c", "sleep 4711.5 & echo bye")
    assert (output, ended) == ("bye\n", Exit(0))
    await appeared(b"\x004711.5\0", 0)


async def test_a_command_that_can_not_run_is_told_so(service: Service) -> None:
    _, errors, ended = await run(service, "hello", "nosuch")
    assert ("nosuch can't be run: No such file" in errors, ended) == (True, Exit(127))
    _, _, ended = await run(service, "hello", "sh", "-c", "kill -9 $$")
    assert ended == Exit(137)


async def test_leaving_it_ends_all_of_it_and_no_instance_was_touched(service: Service) -> None:
    lease = await service.acquire("hello")
    async with shell(
        service, "hello", "sh", "-c", "setsid sleep 4711.75 & echo begun; wait", terminal=TERMINAL
    ) as opened:
        await opened.until("begun")
        await appeared(b"\x004711.75\0", 1)
        listed = {i.id: i for i in await service.client.control.instances("hello")}
        assert listed[opened.opened.instance].state == "shell"
        assert listed[opened.opened.instance].processes in (0, 3, 4)  # 0 where nothing counts them
        assert listed[lease.instance].state == "leased"
        place = Path(opened.opened.socket)
        assert place.exists()
    await appeared(b"\x004711.75\0", 0)
    assert not place.exists()
    assert [i.id for i in await service.client.control.instances("hello")] == [lease.instance]
    assert await support.request(lease) == (200, "hello")
    await service.client.invocations.release(lease.id)


async def test_it_ends_with_its_connection(service: Service) -> None:
    async with shell(service, "hello", "sleep", "4711.125") as opened:
        await appeared(b"\x004711.125\0", 1)
        opened.writer.close()
        async with asyncio.timeout(60):
            assert (await opened.ending).code == 129
    await appeared(b"\x004711.125\0", 0)


async def test_nobody_else_can_join(service: Service) -> None:
    async with shell(service, "hello", terminal=TERMINAL) as opened:
        opened.type("echo begun\n")
        await opened.until("begun\r\n")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(opened.opened.socket)


@pytest.mark.parametrize(
    "rubbish", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x02\x02!", b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_rubbish_ends_it(service: Service, rubbish: bytes) -> None:
    async with shell(service, "hello", "sleep", "60", terminal=TERMINAL) as opened:
        opened.writer.write(rubbish)
        async with asyncio.timeout(60):
            assert (await opened.ending).code == 129


async def test_what_it_can_not_be_opened_for_is_said(service: Service) -> None:
    with pytest.raises(Problem) as caught:
        await run(service, "nosuch")
    assert caught.value.kind == "unknown-function"
    entry = (await service.client.vault.audit(1))[0]
    assert (entry.action, entry.outcome) == ("function.shell", "refused: unknown-function")
