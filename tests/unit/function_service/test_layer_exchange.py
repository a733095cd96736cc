"""Layers that move between machines: the same bytes for the same tree, checked, and no more than may be kept."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from function_service.contract import Revision
from function_service.layers.archive import pack, unpack
from function_service.layers.exchange import PATH, Exchange
from function_service.layers.store import LayerStore
from pilotlight.machines import Link, Machine
from pilotlight.problems import Problem
from pilotlight.settings import Settings
from pilotlight.store_memory import MemoryStore
from tests.support import machines
from tests.support.platform import free_port
from tests.unit.function_service.test_registry import made

FILES = {"handler.py": b"x" * 1_000_000, "inner/deep/file": b"content", "empty": b"", "n\xe4me": b"1"}


def fill(folder: Path, content: bytes = b"") -> Path:
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content or text)
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "link").symlink_to("/nowhere/at/all")
    (folder / "hollow").mkdir()
    os.utime(folder / "handler.py", (1_600_000_000.5, 1_600_000_000.5))
    return folder


def archive(folder: Path) -> bytes:
    return b"".join(pack(folder))


def test_what_is_packed_comes_out_the_same_and_packs_to_the_same_bytes(tmp_path: Path) -> None:
    tree, again = fill(tmp_path / "tree"), tmp_path / "again"
    again.mkdir()
    (tmp_path / "archive").write_bytes(archive(tree))
    unpack(tmp_path / "archive", again)
    assert archive(again) == archive(tree)
    for name, text in FILES.items():
        assert (again / name).read_bytes() == text
    assert (again / "run").stat().st_mode & 0o777 == 0o755
    assert (again / "link").readlink() == Path("/nowhere/at/all")
    assert (again / "handler.py").stat().st_mtime == 1_600_000_000


def test_nothing_is_unpacked_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").symlink_to(tmp_path / "outside")
    (tree / "b").mkdir()
    (tree / "b/file").write_text("1")
    evil = archive(tree).replace(b"b/file", b"a/file")
    (tmp_path / "archive").write_bytes(_summed(evil, b"a/file"))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(Problem, match="leads out"):
        unpack(tmp_path / "archive", target)
    assert list((tmp_path / "outside").iterdir()) == []


def _summed(data: bytes, name: bytes) -> bytes:
    """Correct the checksum of a changed header (POSIX ustar)."""
    start = data.index(name)
    head = bytearray(data[start : start + 512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:start] + bytes(head) + data[start + 512 :]


class Place:
    """One machine: its layers, and what it gives to others."""

    def __init__(self, folder: Path, name: str, store: MemoryStore, most: int = 1 << 30) -> None:
        folder.mkdir()
        (folder / "layers").mkdir()
        self.folder = folder
        self.layers = LayerStore(folder / "layers")
        self.here = Machine(name, f"127.0.0.1:{free_port()}")
        keys = folder.parent
        for each in ("machines.key", "secrets.key"):
            if not (keys / each).exists():
                machines.key(keys / each)
        self.link = Link.of(
            Settings(
                store="redis://127.0.0.1",
                machine_address=self.here.address,
                machines_key=str(keys / "machines.key"),
                secrets_key=str(keys / "secrets.key"),
            )
        )
        self.exchange = Exchange(store, self.layers, self.here, self.link, most)
        self.asked = 0
        self.spoil = lambda content: content

    async def make(self, digest: str, content: bytes = b"") -> None:
        self.layers.seal(digest, fill(self.folder / digest, content), "code", "made")
        await self.exchange.offer(digest, "made")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async def layer(request: web.Request) -> web.Response:
            self.asked += 1
            pieces = [piece async for piece in self.exchange.read(request.match_info["digest"])]
            return web.Response(body=self.spoil(b"".join(pieces)))

        application = web.Application()
        application.add_routes([web.get(f"{PATH}{{digest}}", layer)])
        runner = web.AppRunner(application)
        await runner.setup()
        host, port = self.here.address.split(":")
        await web.TCPSite(runner, host, int(port), ssl_context=self.link.server).start()
        try:
            yield
        finally:
            await runner.cleanup()


def needing(*digests: str) -> Iterable[Revision]:
    import msgspec

    return [msgspec.structs.replace(made("f"), code=digest) for digest in digests]


async def test_a_layer_is_fetched_once_checked_and_offered_in_turn(tmp_path: Path) -> None:
    store = MemoryStore()
    one, two = Place(tmp_path / "one", "one", store), Place(tmp_path / "two", "two", store)
    await one.make("layer")
    (revision,) = needing("layer")
    async with one.serving():
        for _ in range(2):
            async with two.exchange.holding(revision):
                assert archive(two.layers.path("layer")) == archive(one.layers.path("layer"))
    assert one.asked == 1
    three = Place(tmp_path / "three", "three", store)
    async with two.serving(), three.exchange.holding(revision):  # the first one is away
        assert two.asked == 1


async def test_what_is_not_what_it_should_be_is_refused_and_another_machine_asked(tmp_path: Path) -> None:
    store = MemoryStore()
    one, two, three = (Place(tmp_path / name, name, store) for name in ("one", "two", "three"))
    await one.make("layer")
    await two.make("layer")
    one.spoil = lambda content: content.replace(b"content", b"CONTENT")
    (revision,) = needing("layer")
    async with one.serving(), two.serving(), three.exchange.holding(revision):
        assert (three.layers.path("layer") / "inner/deep/file").read_bytes() == b"content"
    assert (one.asked, two.asked) == (1, 1)
    four = Place(tmp_path / "four", "four", store)
    async with one.serving():
        with pytest.raises(Problem, match="not what it should be") as caught:
            async with four.exchange.holding(revision):
                pass
    assert caught.value.kind == "unavailable"
    assert list((four.folder / "layers").iterdir()) == []


async def test_of_fetched_layers_those_used_longest_ago_go_but_none_in_use(tmp_path: Path) -> None:
    store = MemoryStore()
    one = Place(tmp_path / "one", "one", store)
    for number in range(4):
        await one.make(f"layer-{number}", b"%d" % number)
    size = len(archive(one.layers.path("layer-0")))
    two = Place(tmp_path / "two", "two", store, most=2 * size)
    await two.make("own", b"own")
    two.exchange.in_use = lambda: {"layer-0"}
    async with one.serving():
        for revision in needing("layer-0", "layer-1", "layer-2", "layer-1", "layer-3"):
            async with two.exchange.holding(revision):
                pass
    assert {layer.digest for layer in two.layers.all()} == {"own", "layer-0", "layer-3"}
    assert await store.get("machines/layers", "layer-1/two") is None


async def test_a_layer_that_nobody_has_is_said_to_be_missing(tmp_path: Path) -> None:
    place = Place(tmp_path / "one", "one", MemoryStore())
    (revision,) = needing("layer")
    with pytest.raises(Problem, match="push the app again"):
        async with place.exchange.holding(revision):
            pass


async def test_at_the_start_a_machine_tells_what_it_has_and_has_no_more(tmp_path: Path) -> None:
    store = MemoryStore()
    one = Place(tmp_path / "one", "one", store)
    await one.make("layer")
    one.layers.seal("older", fill(one.folder / "older"), "code", "from before there were others")
    await one.exchange.offer("layer", "made")
    one.layers.remove("layer")
    await one.exchange.tell()
    assert [entry.key for entry in await store.scan("machines/layers")] == ["older/one"]


async def test_layers_of_live_functions_are_there_before_they_are_needed(tmp_path: Path) -> None:
    store = MemoryStore()
    one, two = Place(tmp_path / "one", "one", store), Place(tmp_path / "two", "two", store)
    await one.make("layer")
    two.exchange.live = lambda: needing("layer")
    async with one.serving():
        running = asyncio.create_task(two.exchange.run())
        async with asyncio.timeout(30):
            while await store.get("machines/layers", "layer/two") is None:
                await asyncio.sleep(0.01)
    async with two.exchange.holding(*needing("layer")):
        assert one.asked == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
