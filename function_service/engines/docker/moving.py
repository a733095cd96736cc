"""Images on their way between machines: as dockerd saves them there, judged here, and loaded written anew.

What comes is taken for a heap of files and nothing else. The one whose SHA-256 is the image's id is its
configuration, and that names the layers by theirs. Only these go into what dockerd loads, under a name of
ours: other images and names that came along never get there.
"""

import asyncio
import hashlib
import json
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker.errors

from function_service.contract import Image
from function_service.engines.docker import litter
from function_service.engines.docker.daemon import Daemon
from function_service.engines.docker.images import Images
from function_service.engines.docker.permitted import FETCHED, Permitted
from pilotlight.problems import Problem

_PIECE: Final = 256 << 10  # bytes
_LOAD_WITHIN: Final = 600.0  # seconds
_PULL_WITHIN: Final = 300.0  # seconds
_MOST_FILES: Final = 5000  # in an archive; one has a few for each layer
_LONGEST: Final = 4 << 20  # bytes of a configuration
_LONGEST_ANSWER: Final = 1 << 20  # bytes
_SHA256: Final = "sha256:"


@dataclass(frozen=True)
class _Files:
    """Where the files of an image lie in an archive, by their SHA-256: offset and size, in bytes."""

    config: bytes
    layers: dict[str, tuple[int, int]]
    order: tuple[str, ...]  # of the layers, in which one may stand twice


class Moving:
    """Implements engines.base.ImageTransport, for the images of one data folder, which has a label."""

    def __init__(self, docker: Daemon, images: Images, label: str, permitted: Permitted) -> None:
        self._daemon = docker
        self._images = images
        self._label = label
        self._permitted = permitted

    async def has(self, image: str) -> bool:
        """Tell whether an image is on this machine (see ImageTransport)."""
        try:
            await self._images.inspect(image)
        except docker.errors.ImageNotFound:
            return False
        return True

    async def pack(self, image: str) -> AsyncGenerator[bytes]:
        """Yield an image as dockerd saves it (see ImageTransport)."""
        async with self._daemon.session() as session, session.get(f"images/{image}/get") as answer:
            if answer.status != 200:
                detail = f"dockerd does not give the image {image}: it answers {answer.status}."
                raise Problem("not-found", detail)
            async for piece in answer.content.iter_chunked(_PIECE):
                yield piece

    async def unpack(self, image: str, archive: Path) -> None:
        """Have dockerd load an image (see ImageTransport)."""
        found = await asyncio.to_thread(_judge, archive, image)
        name = self._name(image)
        async with asyncio.timeout(_LOAD_WITHIN), self._daemon.session() as session:
            pieces = _pieces(_write(archive, found, image, name))
            headers = {"Content-Type": "application/x-tar"}
            async with session.post("images/load?quiet=1", data=pieces, headers=headers) as answer:
                said = (await answer.content.read(_LONGEST_ANSWER)).decode(errors="replace")
        loaded = await self._daemon.call(lambda client: _found(client, name))
        if loaded.get("Id") != image:
            await self._daemon.call(lambda client: litter.remove(client, name))
            raise Problem("unavailable", f"dockerd made no such image of what came for {image}: {said[:500]}")

    def pulls(self, image: Image) -> bool:
        """Tell whether `pull` may be tried (see ImageTransport)."""
        return bool(image.source) and self._permitted.absent(image.name) is None

    async def pull(self, image: Image) -> None:
        """Pull an image from its registry (see ImageTransport)."""

        def keep(client: Any) -> bool:
            """Give it our name in place of that of its digest, which nobody would ever remove."""
            right = _found(client, image.source).get("Id") == image.id
            if right:
                client.tag(image.id, *self._name(image.id).split(":"), force=True)
            litter.remove(client, image.source)
            return right

        async with asyncio.timeout(_PULL_WITHIN):
            await self._images.pull(image.source)
        if not await self._daemon.call(keep):
            raise Problem("unavailable", f"{image.source} is another image on this machine.")

    async def fetched(self) -> dict[str, int]:
        """List what came from elsewhere (see ImageTransport)."""
        ours = f"{FETCHED}:{self._label}-"
        found = await self._daemon.call(lambda client: client.images(name=FETCHED))
        return {
            each["Id"]: each["Size"]
            for each in found
            if any(name.startswith(ours) for name in litter.names(each))
        }

    async def drop(self, image: str) -> bool:
        """Take our name from what came from elsewhere (see ImageTransport)."""
        gone = await self._daemon.call(lambda client: litter.remove(client, self._name(image)))
        if gone:
            self._images.forget(image)
        return gone

    def _name(self, image: str) -> str:
        return f"{FETCHED}:{self._label}-{image.removeprefix(_SHA256)}"


def _found(client: Any, name: str) -> dict[str, Any]:
    """Return what dockerd knows of an image; nothing where it has none of that name."""
    try:
        found: dict[str, Any] = client.inspect_image(name)
    except docker.errors.ImageNotFound:
        return {}
    return found


def _judge(archive: Path, image: str) -> _Files:
    """Find the files of an image in an archive. It blocks. Raises Problem."""
    places: dict[str, tuple[int, int]] = {}
    left = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as tar:
            for count, entry in enumerate(tar, 1):
                left -= entry.size
                if (
                    count > _MOST_FILES or entry.size < 0 or left < 0
                ):  # files that overlap could take for ever
                    raise Problem("unavailable", f"What came for the image {image} has too many files.")
                if entry.isreg() and not entry.issparse():
                    place = entry.offset_data, entry.size
                    places[_digest(archive, place)] = place
    except (tarfile.TarError, ValueError) as error:
        raise Problem("unavailable", f"What came for the image {image} is no archive: {error}.") from error
    offset, size = places.get(image, (0, _LONGEST + 1))
    if size > _LONGEST:
        raise Problem("unavailable", f"What came for the image {image} is not that.")
    with archive.open("rb") as file:
        file.seek(offset)
        config = file.read(size)
    order = _layers(config)
    if not order or not set(order) <= places.keys():
        raise Problem("unavailable", f"What came for the image {image} lacks some of its layers.")
    return _Files(config, {layer: places[layer] for layer in order}, order)


def _layers(config: bytes) -> tuple[str, ...]:
    try:
        return tuple(str(each) for each in json.loads(config)["rootfs"]["diff_ids"])
    except (ValueError, KeyError, TypeError):
        return ()


def _digest(archive: Path, place: tuple[int, int]) -> str:
    total = hashlib.sha256()
    for piece in _read(archive, place):
        total.update(piece)
    return _SHA256 + total.hexdigest()


def _read(archive: Path, place: tuple[int, int]) -> Iterator[bytes]:
    """Yield what lies at a place. Raises Problem where the archive ends before."""
    offset, left = place
    with archive.open("rb") as file:
        file.seek(offset)
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise Problem("unavailable", "What came for an image was cut short.")
            left -= len(piece)
            yield piece


def _write(archive: Path, found: _Files, image: str, name: str) -> Iterator[bytes]:
    """Yield the archive that dockerd loads, in pieces that are never empty. It blocks."""
    config = f"{image.removeprefix(_SHA256)}.json"
    files = {layer: f"{layer.removeprefix(_SHA256)}.tar" for layer in found.layers}
    manifest = [{"Config": config, "RepoTags": [name], "Layers": [files[layer] for layer in found.order]}]
    for path, content in (("manifest.json", json.dumps(manifest).encode()), (config, found.config)):
        yield _head(path, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    for layer, place in found.layers.items():
        yield _head(files[layer], place[1])
        yield from _read(archive, place)
        if padding := -place[1] % tarfile.BLOCKSIZE:
            yield bytes(padding)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _head(path: str, size: int) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


async def _pieces(blocking: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, blocking, b""):
        yield piece
