"""A disk that is full, and files that are damaged: what is told, what goes on, and what stays as it is."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pilotlight.datafolder import DataFolder
from tests.support.apps import App, call
from tests.support.load import Client, client
from tests.support.platform import READY, Up, family, kill, service, wait_until

HELLO = {
    "handler.py": "def handle(request):\n    print('called')\n    return 'hello'\n",
}
_MOUNT = 'mount -t tmpfs -o size="$1",mode=711 tmpfs "$0" && shift && exec "$@"'


@dataclass
class OnSmallDisk(Up):
    """A platform whose data folder is a small file system of its own, in a mount namespace of its own."""

    size: str = "384m"  # a build wants 256 MB left, and looks when it takes long

    @property
    def data(self) -> DataFolder:
        return DataFolder(self.inside if self.url else self.folder / "data")

    @property
    def inside(self) -> Path:
        """The data folder, as a process outside of the namespace reaches it."""
        return Path(f"/proc/{self.process.pid}/root{self.folder / 'data'}")

    def command(self, *words: str) -> list[str]:
        folder = self.folder / "data"
        folder.mkdir(exist_ok=True)
        return [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            _MOUNT,
            str(folder),
            self.size,
            *words,
        ]

    def environment(self) -> dict[str, str]:
        """Commands of a user find it by its address, as its folder is not theirs."""
        found = super().environment()
        if self.url:
            found |= {"PILOTLIGHT_URL": self.url, "PILOTLIGHT_KEY": self.platform.key or ""}
        return found


@pytest.fixture
def up(tmp_path: Path) -> Iterator[OnSmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    with OnSmallDisk(tmp_path / "platform") as up:
        yield up


def fill(folder: Path) -> Path:
    """Leave no room on the disk of a folder."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return filler


def put(asking: Client, key: str, value: object) -> tuple[int, str]:
    outcome = asking.ask("PUT", f"/data/v1/things/{key}?app=hello", json.dumps(value).encode())
    return outcome.status, outcome.error


def test_a_full_disk_is_named_and_what_needs_none_of_it_goes_on(up: OnSmallDisk) -> None:
    app = App.make(up, "hello", HELLO)
    app.deploy()
    key = up.platform.key
    assert key is not None
    with client(up.url, key) as asking:
        assert put(asking, "one", "kept")[0] == 201
        filler = fill(up.data.root)

        # Calls go on, warm and cold, and so do reads
        for _ in range(2):
            assert call(up, "hello").text == "hello"
            assert asking.ask("DELETE", "/api/v1/functions/hello/instances").status == 200
        assert asking.ask("GET", "/data/v1/things/one?app=hello").body == b'"kept"'

        # What has to be kept is refused, and whoever wanted it is told why
        refused = asking.ask("PUT", "/data/v1/things/two?app=hello", json.dumps("x" * 100_000).encode())
        assert (refused.status, refused.error) == (503, "unavailable")
        assert b"disk is full" in refused.body
        refused = asking.ask(
            "POST", "/api/v1/keys", json.dumps({"name": "k" * 90, "scopes": ["invoke"]}).encode()
        )
        assert (refused.status, refused.error) == (503, "unavailable"), str(refused)
        app.commit({"handler.py": "def handle(request):\n    return 'new'\n"})
        pushed = app.push()
        assert pushed.returncode != 0
        assert "disk" in pushed.stderr.lower() or "space" in pushed.stderr.lower(), pushed.stderr
        assert call(up, "hello").text == "hello"

        # With room again all goes on, without a restart
        filler.unlink()
        assert put(asking, "two", "written")[0] == 201
        app.deploy()
        assert call(up, "hello").text == "new"
        assert asking.ask("GET", "/data/v1/things/one?app=hello").body == b'"kept"'
    processes = family(up.process.pid)
    assert up.stop() == 0
    assert [each for each in processes if each.lives] == []


def test_services_that_are_restarted_on_a_full_disk_serve_again_and_lose_nothing(up: OnSmallDisk) -> None:
    App.make(up, "hello", HELLO).deploy()
    key = up.platform.key
    assert key is not None
    with client(up.url, key) as asking:
        assert put(asking, "one", "kept")[0] == 201
        filler = fill(up.data.root)
        kill(*(service(up, name) for name in ("function-service", "baas", "builder", "gateway")))
        wait_until(lambda: asking.ask("GET", "/readyz").status == 200)
        assert call(up, "hello").text == "hello"
        assert asking.ask("GET", "/data/v1/things/one?app=hello").body == b'"kept"'
        filler.unlink()
        assert put(asking, "two", "written")[0] == 201


@pytest.mark.parametrize("size", ["32k", "100k", "300k"])  # the room ends at several steps of the start
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_start_without_room_is_refused_with_the_reason(tmp_path: Path, size: str) -> None:
    up = OnSmallDisk(tmp_path, size=size)
    try:
        assert up.start() == ""
        assert up.process.wait(60) == 1
    finally:
        up.__exit__()
    said = up.log.read_text()
    assert "disk is full" in said.lower()
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("file", "service", "keep"),
    [("registry.db", "function-service", 0), ("data/documents.db", "baas", 0.5)],
    ids=["a registry cut to nothing", "documents cut in half"],
)
def test_a_damaged_database_ends_the_start_and_is_left_alone(
    tmp_path: Path, file: str, service: str, keep: float
) -> None:
    with Up(tmp_path) as up:
        App.make(up, "hello", HELLO).deploy()
        with client(up.url, up.platform.key or "") as asking:
            for number in range(20):
                assert put(asking, str(number), "x" * 1000)[0] == 201
        assert up.stop() == 0
        path = up.data.root / file
        whole = path.read_bytes()
        damaged = whole[: int(len(whole) * keep)]
        path.write_bytes(damaged)
        layers = sorted(up.data.layers.iterdir())
        for layer in layers:  # old enough to be collected, if anybody took them for garbage
            os.utime(layer, (0, 0))

        assert up.start() == ""
        assert up.process.wait(60) == 1
        said = up.log.read_text()
        assert f"{path}" in said
        assert "Restore a copy of it, or move it away" in said
        assert f"The {service} service did not start; its reason stands above." in said
        assert path.read_bytes() == damaged
        assert sorted(up.data.layers.iterdir()) == layers

        path.write_bytes(whole)  # the remedy
        assert up.start().startswith(READY)
        assert call(up, "hello").text == "hello"
