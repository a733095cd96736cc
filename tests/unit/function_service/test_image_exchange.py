"""Images that move between machines: asked for in turn, fetched once for all, and no more than may be kept."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from function_service.contract import Image
from function_service.image_exchange import PATH, ImageExchange
from function_service.layers.store import LayerStore
from pilotlight.machines import Link
from pilotlight.problems import Problem
from pilotlight.settings import Settings
from tests.support import machines
from tests.support.platform import free_port


class Images:
    """A dockerd of texts: the archive of an image is its text."""

    def __init__(self) -> None:
        self.own: dict[str, bytes] = {}
        self.came: dict[str, int] = {}
        self.registry: dict[str, bytes] = {}
        self.in_use: set[str] = set()
        self.pulled = 0

    async def has(self, image: str) -> bool:
        return image in self.own

    async def pack(self, image: str) -> AsyncGenerator[bytes]:
        for start in range(0, len(self.own[image]), 1 << 16):
            yield self.own[image][start : start + (1 << 16)]

    async def unpack(self, image: str, archive: Path) -> None:
        content = archive.read_bytes()
        if content[:1] != image[-1:].encode():
            raise Problem("unavailable", "It is another one.")
        self._bring(image, content)

    def _bring(self, image: str, content: bytes) -> None:
        self.own[image], self.came[image] = content, len(content)

    def pulls(self, image: Image) -> bool:
        return image.source in self.registry

    async def pull(self, image: Image) -> None:
        self.pulled += 1
        if not self.registry[image.source]:
            raise Problem("build-failed", "The registry does not answer.")
        self._bring(image.id, self.registry[image.source])

    async def fetched(self) -> dict[str, int]:
        return dict(self.came)

    async def drop(self, image: str) -> bool:
        if image in self.in_use:
            return False
        del self.own[image], self.came[image]
        return True


class Place:
    """One machine: its images, and what it gives to others."""

    def __init__(self, folder: Path, most: int = 1 << 30) -> None:
        (folder / "layers").mkdir(parents=True)
        self.layers = folder / "layers"
        self.address = f"127.0.0.1:{free_port()}"
        keys = folder.parent
        for each in ("machines.key", "secrets.key"):
            if not (keys / each).exists():
                machines.key(keys / each)
        link = Link.of(
            Settings(
                store="redis://127.0.0.1",
                machine_address=self.address,
                machines_key=str(keys / "machines.key"),
                secrets_key=str(keys / "secrets.key"),
            )
        )
        assert link is not None
        self.link = link
        self.images = Images()
        self.exchange = ImageExchange(self.images, LayerStore(self.layers), link, most)
        self.exchange.needed = lambda: {*self.images.own}
        self.asked = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async def give(request: web.Request) -> web.StreamResponse:
            self.asked += 1
            await self.goes_on.wait()
            response = web.StreamResponse()
            try:
                async for piece in self.exchange.read(request.match_info["digest"]):
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(piece)
            except Problem as problem:
                return web.json_response(problem.document(), status=problem.status)
            await response.write_eof()
            return response

        application = web.Application()
        application.add_routes([web.get(f"{PATH}{{digest}}", give)])
        runner = web.AppRunner(application)
        await runner.setup()
        host, port = self.address.split(":")
        await web.TCPSite(runner, host, int(port), ssl_context=self.link.server).start()
        try:
            yield
        finally:
            await self.exchange.close()
            await runner.cleanup()

    async def hold(self, image: Image, *, ahead: bool = False) -> None:
        async with self.exchange.holding(image, ahead=ahead):
            pass

    def left(self) -> list[Path]:
        return list(self.layers.iterdir())


def image(letter: str, source: str = "") -> Image:
    return Image(name="Dockerfile", id=f"sha256:{letter}", runtime="native", executable="", source=source)


def content(letter: str, size: int = 300_000) -> bytes:
    return letter.encode() * size


async def test_the_others_are_asked_in_turn_and_what_is_not_the_one_is_left_there(tmp_path: Path) -> None:
    one, two, three, four = (Place(tmp_path / name) for name in ("one", "two", "three", "four"))
    two.images.own["sha256:a"] = content("b")
    three.images.own["sha256:a"] = content("a")
    async with one.serving(), two.serving(), three.serving():
        four.exchange.machines = lambda: [f"127.0.0.1:{free_port()}", one.address, two.address, three.address]
        for _ in range(2):
            await four.hold(image("a"))
    assert four.images.own == {"sha256:a": content("a")}
    assert [place.asked for place in (one, two, three)] == [1, 1, 1]
    assert four.left() == []


async def test_many_who_need_the_same_at_once_have_it_fetched_once(tmp_path: Path) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two")
    one.images.own["sha256:a"] = content("a")
    one.goes_on.clear()
    two.exchange.machines = lambda: [one.address]
    async with one.serving():
        first, *others = [asyncio.create_task(two.hold(image("a"))) for _ in range(5)]
        async with asyncio.timeout(30):
            while not one.asked:
                await asyncio.sleep(0.01)
        first.cancel()  # the fetch is not only his
        one.goes_on.set()
        await asyncio.gather(*others)
    assert one.asked == 1


async def test_a_fetch_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next(tmp_path: Path) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two")
    two.exchange.machines = lambda: [one.address]
    async with one.serving():
        told = await asyncio.gather(*(two.hold(image("a")) for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in told] == [Problem] * 3
        assert f"{one.address} answers 404" in str(told[0])
        one.images.own["sha256:a"] = content("a")
        await two.hold(image("a"))
    assert one.asked == 2


async def test_one_that_no_function_needs_is_not_given(tmp_path: Path) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two")
    one.images.own["sha256:a"] = content("a")
    one.exchange.needed = set
    two.exchange.machines = lambda: [one.address]
    async with one.serving():
        with pytest.raises(Problem, match="answers 404"):
            await two.hold(image("a"))


async def test_a_registry_comes_first_where_it_may_and_another_machine_where_it_fails(tmp_path: Path) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two")
    one.images.own = {"sha256:a": content("a"), "sha256:b": content("b")}
    two.images.registry = {"r/a": content("a"), "r/b": b""}
    two.exchange.machines = lambda: [one.address]
    async with one.serving():
        await two.hold(image("a", "r/a"))
        assert (one.asked, two.images.pulled) == (0, 1)
        await two.hold(image("b", "r/b"))
        assert (one.asked, two.images.pulled) == (1, 2)


async def test_what_is_larger_than_all_may_be_is_broken_off_and_nothing_is_left(tmp_path: Path) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two", most=1 << 20)
    one.images.own["sha256:a"] = content("a", 3 << 20)
    two.exchange.machines = lambda: [one.address]
    async with one.serving():
        with pytest.raises(Problem, match=r"more than 1 MB\. Raise --max-fetched-images"):
            await two.hold(image("a"))
    assert (two.images.own, two.left()) == ({}, [])


async def test_those_used_longest_ago_go_but_none_in_use_and_nothing_comes_ahead_where_it_is_full(
    tmp_path: Path,
) -> None:
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two", most=600_000)
    one.images.own = {f"sha256:{letter}": content(letter) for letter in "abcd"}
    two.exchange.machines = lambda: [one.address]
    two.images.in_use = {"sha256:a"}
    async with one.serving():
        for letter in "ab":
            await two.hold(image(letter), ahead=True)
        await two.hold(image("c"), ahead=True)
        assert sorted(two.images.own) == ["sha256:a", "sha256:b"]
        await two.hold(image("c"))
        assert sorted(two.images.own) == ["sha256:a", "sha256:c"]
        async with two.exchange.holding(image("c"), ahead=False):
            await two.hold(image("d"))
        assert sorted(two.images.own) == ["sha256:a", "sha256:c", "sha256:d"]


async def test_an_image_that_nobody_can_give_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"\(Dockerfile\) is not on this machine\. .* Push the app again"):
        await Place(tmp_path / "one").hold(image("a"))
