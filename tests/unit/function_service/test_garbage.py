"""What is collected, and what is not although no revision is made of it."""

from pathlib import Path

from function_service.engines.fake import FakeEngine
from function_service.service import collect_garbage
from tests.support.fleet import World, until, world


def seal(w: World, folder: Path) -> None:
    """Make the layer that the revisions of these tests are made of."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "handler.py").write_text("def handle(request): ...")
    w.layers.seal("code", tree, "code", "")


async def collect(w: World, spare: float = -1.0) -> bool:
    """Collect, and tell whether the layer is still there."""
    await collect_garbage(w.registry, w.layers, w.logs, w.fleet, spare)
    return w.layers.has("code")


async def test_a_layer_stays_until_nothing_is_made_of_it_and_nothing_has_it_mounted(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        seal(w, tmp_path)
        await w.deploy()
        lease = await w.fleet.acquire("f", w.gateway().peer, 1.0)
        assert await collect(w)
        await w.delete()  # the instance answers a call still
        assert await collect(w)
        await w.fleet.release(lease.id)
        await until(lambda: not w.fleet.all())
        assert not await collect(w)


async def test_a_layer_that_was_made_just_now_may_belong_to_a_push_that_is_under_way(tmp_path: Path) -> None:
    async with world(FakeEngine(), tmp_path) as w:
        seal(w, tmp_path)
        assert await collect(w, spare=3600.0)
        assert not await collect(w)
