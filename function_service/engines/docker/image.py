"""The container layer as an image: the skeleton of a root file system, the shims, and what runs as process 1.

Everything else of the host's system is shown in its place, read-only, so no registry is needed.
"""

import asyncio
import hashlib
import io
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import runtimes.declaration
from function_service.engines.docker import litter
from function_service.engines.docker.daemon import Daemon
from function_service.engines.embedded import container

REPOSITORY = "pilotlight-host"
INSIDE = "/runtime/inside"
_KIND = "host"
_PACKAGES = Path(__file__).parents[2]
_MODULES = (
    "__init__",
    "shell_frames",
    "engines/__init__",
    *(f"engines/embedded/{name}" for name in ("__init__", "forking", "init", "limits", "messages", "relay")),
    *(f"engines/embedded/{name}" for name in ("sandbox", "seccomp", "shell", "snapshot", "syscalls")),
    *(f"engines/docker/{name}" for name in ("__init__", "apart", "carried", "inside", "tunnel")),
)


class HostImage:
    """The image of this machine, in dockerd."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._name: str | None = None  # once it is there
        self._turn = asyncio.Lock()  # two at once would both import it, and one lose its name

    async def name(self) -> str:
        """Return its name; it is made where it is not there. Raises Problem."""
        async with self._turn:
            if self._name is None:
                self._name = await self._make()
            return self._name

    async def _make(self) -> str:
        tag, data = await asyncio.to_thread(_pack)
        name = f"{REPOSITORY}:{tag}"

        def make(client: Any) -> None:
            if not client.images(name=name, quiet=True):
                changes = (litter.label(_KIND),)
                client.import_image_from_data(data, repository=REPOSITORY, tag=tag, changes=changes)
            _remove_others(client, name)

        await self._daemon.call(make)
        return name

    def forget(self) -> None:
        """Have it looked for again: somebody has removed it."""
        self._name = None

    async def tidy(self) -> None:
        """Remove what has lost its name and was in use until now. Raises Problem."""
        await self._daemon.call(lambda client: litter.remove_nameless(client, _KIND))

    async def remove(self) -> None:
        """Remove it. Raises Problem."""
        await self._daemon.call(lambda client: _remove_others(client, ""))
        self._name = None


def _remove_others(client: Any, name: str) -> None:
    """Remove what former versions have left, and former starts, but for what is in use."""
    for image in client.images(name=REPOSITORY):
        for tag in image["RepoTags"] or ():
            if tag != name:
                litter.remove(client, tag)
    litter.remove_nameless(client, _KIND)


def _pack() -> tuple[str, bytes]:
    """Return the tag, which names the content, and the files as tar. Equal content gives equal bytes."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        container.write_skeleton(root, *container.skeleton())
        write_runtime(root / "runtime")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted(root.rglob("*")):
                tar.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_anonymous)
    data = packed.getvalue()
    # What has this content and no label yet has another name, under which it is found and removed
    return hashlib.sha256(data + litter.label(_KIND).encode()).hexdigest()[:24], data


def write_runtime(folder: Path) -> None:
    """Write what containers have at /runtime: the shims, and what runs as process 1."""
    for runtime in runtimes.declaration.load_all().values():
        if runtime.shim is not None:
            _copy(runtime.shim, sorted(runtime.shim.rglob("*")), folder / runtime.name)
    modules = [_PACKAGES / f"{module}.py" for module in _MODULES]
    _copy(_PACKAGES, modules, folder / Path(INSIDE).name / _PACKAGES.name)


def _copy(top: Path, paths: list[Path], target: Path) -> None:
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = target / path.relative_to(top)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    entry.mode = 0o777 if entry.issym() else 0o755 if entry.isdir() else 0o644
    if entry.name == "tmp":  # what Docker mounts there gets the mode of what it covers
        entry.mode = 0o1777
    return entry
