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

import docker.errors

import runtimes.declaration
from function_service.engines.docker.daemon import Daemon
from function_service.engines.embedded import container

REPOSITORY = "pilotlight-host"
INSIDE = "/runtime/inside"
_PACKAGES = Path(__file__).parents[2]
_MODULES = (
    "__init__",
    "shell_frames",
    "engines/__init__",
    *(f"engines/embedded/{name}" for name in ("__init__", "forking", "init", "messages", "relay", "sandbox")),
    *(f"engines/embedded/{name}" for name in ("seccomp", "shell", "snapshot", "syscalls")),
    *(f"engines/docker/{name}" for name in ("__init__", "inside")),
)


class HostImage:
    """The image of this machine, in dockerd."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._name: str | None = None  # once it is there

    async def name(self) -> str:
        """Return its name; it is made where it is not there. Raises Problem."""
        if self._name is None:
            tag, data = await asyncio.to_thread(_pack)
            name = f"{REPOSITORY}:{tag}"

            def make(client: Any) -> None:
                if client.images(name=name, quiet=True):
                    return
                client.import_image_from_data(data, repository=REPOSITORY, tag=tag)

            await self._daemon.call(make)
            await self._daemon.call(lambda client: _remove_others(client, name))
            self._name = name
        return self._name

    def forget(self) -> None:
        """Have it looked for again: somebody has removed it."""
        self._name = None

    async def remove(self) -> None:
        """Remove it. Raises Problem."""
        await self._daemon.call(lambda client: _remove_others(client, ""))
        self._name = None


def _remove_others(client: Any, name: str) -> None:
    """Remove what former versions have left, but for what is in use."""
    for image in client.images(name=REPOSITORY):
        for tag in image["RepoTags"] or ():
            if tag != name:
                try:
                    client.remove_image(tag)
                except docker.errors.APIError as error:
                    if error.status_code not in (404, 409):  # gone meanwhile; in use
                        raise


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
    return hashlib.sha256(data).hexdigest()[:24], data


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
