"""The folder of repositories: what is made there is made as a whole, whoever goes meanwhile."""

import asyncio
import shutil
import threading
from pathlib import Path

from builder.limits import Limits
from builder.repository import Repositories


async def test_a_push_whose_client_goes_while_its_repository_is_made_leaves_nothing_half_made(
    tmp_path, monkeypatch
):
    made = Repositories(tmp_path, Limits())
    await made.prepare()
    begun, go_on = threading.Event(), threading.Event()
    plain = shutil.copytree

    def copy(source, target, *rest, **more):
        plain(source, target, *rest, **more)
        if Path(target).parent == tmp_path:  # and not one of the folders within
            begun.set()
            assert go_on.wait(10)

    monkeypatch.setattr(shutil, "copytree", copy)
    creating = asyncio.create_task(made.create("shop"))
    await asyncio.to_thread(begun.wait, 10)
    creating.cancel()
    await asyncio.sleep(0)
    assert not creating.done()  # what clears up after the push must not come before
    go_on.set()
    await asyncio.gather(creating, return_exceptions=True)
    assert creating.cancelled()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".new-")] == []
    assert made.apps() == ["shop"]  # which the end of the push removes, as nothing has reached it


async def test_a_repository_that_can_not_be_made_leaves_nothing(tmp_path, monkeypatch):
    made = Repositories(tmp_path, Limits())
    await made.prepare()

    def fail(source, target):
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", fail)
    (failure,) = await asyncio.gather(made.create("shop"), return_exceptions=True)
    assert isinstance(failure, OSError)
    assert {path.name for path in tmp_path.iterdir()} == {".empty.git"}
