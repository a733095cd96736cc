"""The layers that root file systems of sandboxes are made of, and the plan by which a zygote builds one.

The container layer comes from container.py; there is one layer for each runtime, with its shim. An
interpreter outside of the system's folders has one of its own, with the mount point for its folder, which no
other's sandboxes see.
"""

import hashlib
import json
from typing import Any

import runtimes.declaration
from function_service.engines.embedded import container
from function_service.layers.store import LayerStore
from pilotlight.datafolder import DataFolder
from runtimes.declaration import Interpreter, Runtime


class Roots:
    """Makes the layers where they are missing."""

    def __init__(self, data: DataFolder, layers: LayerStore, interpreters: tuple[Interpreter, ...]) -> None:
        self._data = data
        self._layers = layers
        self._interpreters = interpreters
        self._runtimes: dict[str, Runtime] = runtimes.declaration.load_all()

    def make_container(self) -> str:
        """Return the name of the container layer, made anew if it is not there."""
        files, links = container.skeleton()
        recipe = [(k, hashlib.sha256(v).hexdigest()) for k, v in files.items()], links, container.MOUNT_POINTS
        digest = "container-" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
        if not self._layers.has(digest):
            with self._layers.new() as folder:
                container.write_skeleton(folder, files, links)
                self._layers.seal(digest, folder, "container", "system folders of this machine")
        return digest

    def _make_runtime(self, runtime: Runtime, folders: list[str]) -> str:
        """Return the name of the layer with the shim, at /runtime/NAME in the root, and with mount points."""
        files = {}
        if runtime.shim is not None:
            for path in sorted(runtime.shim.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    files[path.relative_to(runtime.shim)] = path.read_bytes()
        content = hashlib.sha256("\0".join([runtime.name, *folders]).encode())
        for name, text in files.items():
            content.update(b"%s\0%d\0%s" % (bytes(name), len(text), text))
        digest = f"runtime-{content.hexdigest()[:24]}"
        if not self._layers.has(digest):
            with self._layers.new() as folder:
                top = folder / "runtime" / runtime.name
                top.mkdir(parents=True)
                for name, text in files.items():
                    (top / name).parent.mkdir(parents=True, exist_ok=True)
                    (top / name).write_bytes(text)
                for place in folders:
                    (folder / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
                beside = f", for {', '.join(folders)}" if folders else ""
                self._layers.seal(digest, folder, "runtime", f"{runtime.title} and its shim{beside}")
        return digest

    def plan(self, interpreter: Interpreter, container_layer: str) -> dict[str, Any]:
        """Return what container.enter needs for the zygote of an interpreter."""
        root = self._data.run / "roots" / interpreter.name
        root.mkdir(parents=True, exist_ok=True)
        # What is not forked from a zygote of its own is started in sandboxes of any
        seen = [i for i in self._interpreters if i == interpreter or not self._runtimes[i.runtime].forkable]
        folders: dict[str, list[str]] = {i.runtime: [] for i in self._interpreters}
        for each in seen:
            folders[each.runtime] += [each.folder] if each.folder else []
        lowers = [self._make_runtime(self._runtimes[name], places) for name, places in folders.items()]
        shown = [place for places in folders.values() for place in places]
        return {
            "layers": str(self._data.layers),
            "lowers": [*lowers, container_layer],
            "root": str(root),
            "binds": container.binds(shown),
            "hidden": container.hidden([*shown, *(i.executable for i in seen)]),
        }

    def remove(self, kinds: set[str]) -> None:
        """Remove the layers of these kinds."""
        for layer in self._layers.all():
            if layer.kind in kinds:
                self._layers.remove(layer.digest)
