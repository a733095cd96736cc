"""What is collected, and what is not although no revision is made of it."""

from pathlib import Path

from function_service.contract import LogLine
from function_service.engines.fake import FakeEngine
from function_service.garbage import Garbage
from tests.support.fleet import World, until, world

HOUR = 3600.0


class Clock:
    """A clock that goes on by itself only as far as layers need it to tell which was made first."""

    now = 1e10  # long after any layer of these tests was made, as they have the real time

    def __call__(self) -> float:
        return self.now


def collector(w: World, clock: Clock, most: int = 1 << 30) -> Garbage:
    garbage = Garbage(w.registry, w.layers, w.logs, most, clock=clock)
    garbage.fleet = w.fleet
    return garbage


def seal(w: World, folder: Path, digest: str = "code", size: int = 100) -> None:
    """Make a layer; the revisions of these tests are made of `code`."""
    tree = folder / f"tree-{digest}"
    tree.mkdir()
    (tree / "handler.py").write_bytes(b"#" * size)
    w.layers.seal(digest, tree, "code", "")


async def test_a_layer_stays_until_nothing_is_made_of_it_and_nothing_has_it_mounted(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        garbage = collector(w, Clock())
        seal(w, tmp_path)
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        await garbage.collect()
        assert w.layers.has("code")
        await w.delete()  # the instance answers a call still
        await garbage.collect()
        assert w.layers.has("code")
        await w.fleet.release(lease.id)
        await until(lambda: not w.fleet.all())
        await garbage.collect()
        assert not w.layers.has("code")


async def test_a_layer_that_a_push_has_asked_for_stays_while_it_may_be_under_way(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        clock = Clock()
        garbage = collector(w, clock)
        for digest in ("code", "other"):
            seal(w, tmp_path, digest)
            garbage.asked(digest)
        clock.now += HOUR - 1
        garbage.asked("other")  # by another push, which finds it
        await garbage.collect()
        assert w.layers.has("code")
        clock.now += 2
        await garbage.collect()
        assert not w.layers.has("code")
        assert w.layers.has("other")


async def test_what_a_push_has_made_live_goes_as_soon_as_no_revision_needs_it(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        garbage = collector(w, Clock())
        garbage.asked("code")
        seal(w, tmp_path)
        await w.deploy()
        garbage.settled(["code", None])
        await garbage.collect()
        assert w.layers.has("code")
        await w.delete()
        await garbage.collect()
        assert not w.layers.has("code")


async def test_a_push_that_has_outlived_the_service_finds_its_layers(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        seal(w, tmp_path)
        clock = Clock()
        (layer,) = w.layers.all()
        clock.now = layer.created + 1
        garbage = collector(w, clock)  # the next service, which nobody has asked for it
        clock.now += HOUR - 2
        await garbage.collect()
        assert w.layers.has("code")
        clock.now += 2
        await garbage.collect()
        assert not w.layers.has("code")


async def test_layers_of_pushes_that_fail_have_a_limit_together(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        clock = Clock()
        garbage = collector(w, clock, most=250_000)
        for number in range(5):
            clock.now += 1
            garbage.asked(f"failed{number}")
            seal(w, tmp_path, f"failed{number}", 100_000)
            await garbage.collect_layers()
        assert [w.layers.has(f"failed{number}") for number in range(5)] == [False, False, False, True, True]


async def test_logs_go_with_their_function(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        garbage = collector(w, Clock())
        await w.deploy()
        w.logs.append("f", [LogLine(time=1.0, instance="i", line="x")])
        await garbage.collect()
        assert w.logs.tail("f", 1)
        await w.delete()
        await garbage.collect()
        assert not w.logs.tail("f", 1)
