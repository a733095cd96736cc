"""How code comes into containers with a kernel of their own: as names of the same files."""

import os
from pathlib import Path

import pytest

from function_service.engines.docker.guest import Root
from function_service.engines.docker.ways import OwnKernel

ROOT = Root(
    image="sha256:0",
    command=("/python",),
    environment={},
    shown=(("/empty", "/function"), ("/empty", "/node_modules"), ("/usr", "/usr")),
    kept=[],
    gone=[],
    later=("/function", "/tools"),
    volumes=("/data", "/run/spool", "/tmp", "/function"),
)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    layer = tmp_path / "layer"
    (layer / "deep").mkdir(parents=True)
    (layer / "deep/file").write_text("x")
    (layer / "link").symlink_to("/etc")
    os.mkfifo(layer / "pipe")
    return layer


def test_places_for_code_and_volumes_are_shown_as_folders_that_cannot_be_written(tmp_path: Path) -> None:
    shown = {at: (of, writable) for of, at, writable in OwnKernel().shown(tmp_path, ROOT, [])}
    assert shown == {
        "/usr": (Path("/usr"), False),
        "/node_modules": (Path("/empty"), False),
        "/function": (tmp_path / "function", False),
        "/tools": (tmp_path / "tools", False),
        "/data": (tmp_path / "empty", False),
        "/run/spool": (tmp_path / "empty", False),
    }


def test_a_job_gets_its_folders_from_the_start_on(tmp_path: Path) -> None:
    job = [(tmp_path, "/function", True), (tmp_path, "/tools/x", False)]
    shown = OwnKernel().shown(tmp_path, ROOT, job)
    assert [each for each in shown if each[1].startswith(("/function", "/tools"))] == job


async def test_files_keep_their_place_on_the_disk_and_links_stay_links(tmp_path: Path, layer: Path) -> None:
    place = tmp_path / "function"
    place.mkdir()
    await OwnKernel().bring(tmp_path, -1, [(layer, "/function", False)], 0)
    assert (place / "deep/file").samefile(layer / "deep/file")
    assert (place / "link").readlink() == Path("/etc")
    assert sorted(path.name for path in place.iterdir()) == [
        "deep",
        "link",
    ]  # and what is neither a file nor a folder stays out


async def test_a_link_in_place_of_a_layer_is_refused(tmp_path: Path, layer: Path) -> None:
    (tmp_path / "other").symlink_to(layer)
    with pytest.raises(NotADirectoryError, match="other is a link"):
        await OwnKernel().bring(tmp_path, -1, [(tmp_path / "other", "/function", False)], 0)
