"""What a container is made of: the host's own image, or a foreign one into which process 1 is brought along.

Nothing of a foreign image runs process 1: the host's Python does, through the host's loader, from folders
that are shown at a place of their own. They are taken away (entering.py) before anything of the image or of a
function runs, so that these see the image and nothing of the host. Process 1 has all in memory by then.
"""

import posixpath
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from function_service.engines.docker.image import INSIDE, write_runtime
from function_service.engines.docker.images import Inspected
from function_service.engines.embedded import container
from pilotlight.problems import Problem
from runtimes import places
from runtimes.declaration import Interpreter

_COMMAND: Final = (
    f"import sys; sys.path.insert(0, {INSIDE!r}); from function_service.engines.docker.{{}} import main; "
    f"sys.path.remove({INSIDE!r}); main()"
)
_HOST: Final = "/runtime/host"
PLACES: Final = ("/function", "/dependencies", "/source", "/build", "/tools")
"""Where code comes later."""
# An image has no such folders, so the engine shows an empty one there
_PLACES: Final = (*PLACES, "/node_modules")
_MOUNTED: Final = ("/runtime", "/tmp")  # noqa: S108  besides, by us
_SYSTEM: Final = ("/run", "/proc", "/sys", "/dev")
# What the loader of process 1 would load first, of whatever root it starts in, ld.so(8)
_PRELOADED: Final = "/etc/ld.so.preload"


@dataclass(frozen=True)
class Root:
    """How the root of a container comes about, and its process 1 in it."""

    image: str
    command: tuple[str, ...]  # of process 1
    environment: dict[str, str | None]  # of process 1; None takes away what the image sets
    shown: tuple[tuple[str, str], ...]  # folders and files of the host, and where they are seen
    kept: list[str]  # the places of those that stay
    gone: list[str]  # places of mounts that go before a runtime boots
    later: tuple[str, ...]  # places where code comes later
    volumes: tuple[str, ...] = ()  # which its image declares


def process_one(module: str, *python: str) -> tuple[str, ...]:
    """Return the command of process 1, given the module whose `main` it is, and the command of a Python."""
    return (*python, "-I", "-S", "-B", "-c", _COMMAND.format(module))


def prepare(folder: Path, interpreters: tuple[Interpreter, ...]) -> None:
    """Write what containers of foreign images are shown at /runtime, below a folder of the engine's."""
    (folder / "nothing").touch(0o644)
    runtime = folder / "runtime"
    write_runtime(runtime)
    for place in container.binds([i.folder for i in interpreters if i.folder]):
        (folder / f"runtime/host{place}").mkdir(parents=True, exist_ok=True)
    for path in (runtime, *runtime.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def root(
    folder: Path, python: Interpreter, image: Inspected, *, module: str = "inside", whole: bool = False
) -> Root:
    """Return what a container of a foreign image is made of, given the module that is process 1.

    Where it is `whole`, nothing is to be mounted in it later, and nothing of ours stays.

    Raises Problem where process 1 can't be brought into it.
    """
    executable = Path(python.executable).resolve()
    loader = places.loader_of(executable)
    if loader is None:
        detail = f"{executable} can't be process 1 in an image, since it names no loader: it is no program."
        raise Problem("init-failed", f"{detail} Install Python with the system's packages.")
    loader = loader.resolve()
    libraries = dict.fromkeys((str(loader.parent), f"/usr/{loader.parent.relative_to('/')}"))
    path = ":".join(f"{_HOST}{each}" for each in libraries if Path(each).is_dir())
    command = process_one(module, f"{_HOST}{loader}", "--library-path", path, f"{_HOST}{executable}")
    empty = str(folder / "empty")
    host = [(place, f"{_HOST}{place}") for place in container.binds([python.folder] if python.folder else [])]
    # A volume would be a folder on the disk to which a function could write without any limit
    volumes = [posixpath.normpath(each) for each in image.volumes]
    later = () if whole else _PLACES
    mounted = (*later, *_MOUNTED)
    covered = [each for each in volumes if not _is_within(each, (*mounted, *_SYSTEM))]
    return Root(
        image=image.id,
        command=command,
        # What an image sets is for its own programs, and so are its locales, which libc would load
        environment={**dict.fromkeys(filter(None, image.env)), "LC_ALL": "C"},
        shown=(
            (str(folder / "runtime"), "/runtime"),
            (str(folder / "nothing"), _PRELOADED),
            *host,
            *((empty, place) for place in (*later, *covered)),
        ),
        kept=[] if whole else ["/runtime"],
        gone=[
            _PRELOADED,
            *(each for each in volumes if each not in mounted),
            *(place for _, place in host),
            *(("/runtime",) if whole else ()),
        ],
        later=later,
        volumes=tuple(volumes),
    )


def _is_within(path: str, places: tuple[str, ...]) -> bool:
    return any(PurePosixPath(path).is_relative_to(place) for place in places)
