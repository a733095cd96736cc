"""Images for tests, made of files of this machine, since no registry is in reach: a busybox, and a Python in it."""

import contextlib
import io
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker

from function_service.engines.docker import litter
from runtimes.declaration import choose, load_all
from tests.support.service import client

MARK = "of an image, and not of the host\n"  # what /marked says in each
_KIND = "test"
_IN_USE_AT_MOST = 60.0  # seconds in which a service has given up its blank containers
BUSYBOX = shutil.which("busybox") or "/usr/bin/busybox"
_APPLETS = ("sh", "cat", "echo", "grep", "httpd", "id", "ls", "mkdir", "sleep", "touch")
_LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|__pycache__|site-packages|dist-packages)(/|$)"
)


@contextlib.contextmanager
def imported(name: str, files: dict[str, Path | str], changes: tuple[str, ...] = ()) -> Iterator[str]:
    """Import an image of files (path → a file of the host, or a text), with a busybox; yield its id."""
    with imported_tar(name, packed({"marked": MARK, **files}), changes) as found:
        yield found


@contextlib.contextmanager
def imported_tar(
    name: str, tar: bytes | Path, changes: tuple[str, ...] = (), kind: str = _KIND
) -> Iterator[str]:
    """Import an image of a root file system; yield its id. What is built on it is of that kind, too.

    What has no name of a kind, goes: so a test that builds something needs a kind of its own.
    """
    repository, _, tag = name.partition(":")
    labelled = (*changes, litter.label(kind))
    with client() as api:
        litter.remove_nameless(api, kind)  # of tests that were killed
        if isinstance(tar, Path):
            api.import_image_from_file(str(tar), repository=repository, tag=tag, changes=labelled)
        else:
            api.import_image_from_data(tar, repository=repository, tag=tag, changes=labelled)
        try:
            yield api.inspect_image(name)["Id"]
        finally:
            remove(api, name)
            litter.remove_nameless(api, kind)


def remove(api: Any, name: str) -> None:
    """Remove an image, once no container is made of it any more."""
    deadline = time.monotonic() + _IN_USE_AT_MOST
    while True:
        try:
            api.remove_image(name)
            return
        except docker.errors.ImageNotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != 409 or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def of_python() -> dict[str, Path | str]:
    """Return the files of this machine's usual Python, with its libraries and its standard library."""
    usual = choose(load_all()["python"].find(), "python")
    assert usual is not None
    executable = usual.executable
    asking = (
        "import os, sys, sysconfig; print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib'))"
    )
    program, library = subprocess.run(
        [executable, "-I", "-S", "-c", asking], capture_output=True, text=True, check=True
    ).stdout.split()
    modules = [
        path
        for path in Path(library).rglob("*")
        if path.is_file() and not _LEFT_OUT.search(str(path)[len(library) :])
    ]
    native = [path for path in modules if path.suffix == ".so"]
    return {
        str(path)[1:]: path for path in (Path(program), *modules, *_libraries(Path(program), *native))
    } | {
        "usr/local/bin/python3": f"-> {program}",
        "etc/passwd": "root:x:0:0:root:/:/bin/sh\n",
    }


def of_node() -> dict[str, Path | str]:
    """Return the files of this machine's usual Node, with what Debian keeps beside it; none where there is none."""
    usual = choose(load_all()["node"].find(), "node")
    if usual is None:
        return {}
    program = Path(usual.executable).resolve()
    beside = [
        path
        for name in ("acorn", "acorn-walk", "cjs-module-lexer", "undici")
        for path in Path("/usr/share/nodejs", name).rglob("*")
        if path.is_file()
    ]
    files = {str(path)[1:]: path for path in (program, *beside, *_libraries(program))}
    return files | ({} if program.parent == Path("/usr/bin") else {"usr/bin/node": f"-> {program}"})


def of_redis() -> dict[str, Path | str]:
    """Return the files of this machine's redis-server and redis-cli."""
    programs = [Path(str(shutil.which(name))) for name in ("redis-server", "redis-cli")]
    files: dict[str, Path | str] = {f"usr/local/bin/{program.name}": program for program in programs}
    return files | {str(path)[1:]: path for path in _libraries(*programs)}


def _libraries(*programs: Path) -> set[Path]:
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, re.MULTILINE)}


def packed(files: dict[str, Path | str]) -> bytes:
    """Return a tar; a text that begins with an arrow is a symbolic link."""
    content: dict[str, Path | str] = {"bin/busybox": Path(BUSYBOX)}
    content |= {f"bin/{name}": "-> busybox" for name in _APPLETS}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, what in (content | files).items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(what, str) and what.startswith("-> "):
                entry.type, entry.linkname = tarfile.SYMTYPE, what.removeprefix("-> ")
                tar.addfile(entry)
            else:
                data = what.encode() if isinstance(what, str) else what.read_bytes()
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
