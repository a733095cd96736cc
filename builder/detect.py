"""Which folders of a commit are functions: what the manifest names, and what a runtime recognises."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builder.limits import Limits
from builder.manifest import MANIFEST, FunctionManifest, suggestion
from function_service.contract import Image
from pilotlight.ids import NAME_RULE, is_name
from pilotlight.problems import Problem
from runtimes.declaration import Interpreter, Runtime, choose


@dataclass(frozen=True)
class Found:
    """One function of a commit.

    `folder` is where it lies now, `path` where in the repository ("." is its root), `values` what the
    manifest says beyond that. Where it names an image, `image` is that name until the image was looked at
    (see images.py), and until then `interpreter` has the version that the manifest wants, if any.
    """

    name: str
    path: str
    folder: Path
    runtime: Runtime
    interpreter: Interpreter
    handler: str
    values: dict[str, Any]
    image: str | Image | None = None

    @property
    def by_file(self) -> bool:
        """Whether an image is built by a file of the function, its Dockerfile."""
        return self.handler == self.runtime.image_file


@dataclass(frozen=True)
class Languages:
    """The runtimes there are, and the interpreters of each that this machine has."""

    runtimes: Mapping[str, Runtime]
    interpreters: Mapping[str, tuple[Interpreter, ...]]

    def present(self) -> str:
        """Return what this machine has, for a message."""
        names = [found.name for each in self.interpreters.values() for found in each]
        return ", ".join(names) or "none"

    def recognise(self, folder: Path, *, by_file: bool = True) -> str | None:
        """Return the name of the first runtime that recognises a folder; none where nothing does.

        Unless `by_file` is false, the file by which an image is built makes a function too, where nothing
        else does.
        """
        for runtime in self.runtimes.values():
            if runtime.recognise(folder) is not None:
                return runtime.name
        having = (each.name for each in self.runtimes.values() if by_file and has_image_file(each, folder))
        return next(having, None)


def has_image_file(runtime: Runtime, folder: Path) -> bool:
    """Tell whether a folder has the file by which an image of a runtime's programs is built."""
    path = folder / runtime.image_file if runtime.image_file is not None else None
    return path is not None and path.is_file() and not path.is_symlink()


def detect(
    app: str,
    root: Path,
    manifest: Mapping[str, FunctionManifest],
    languages: Languages,
    limits: Limits,
) -> list[Found]:
    """Return the functions of the repository whose files lie under root, in the order of their names.

    Raises Problem `build-failed`, whose detail lists everything that is wrong, one thing a line.
    """
    # A Dockerfile at the root is for all of it, unless the manifest says that functions lie below
    alone = all(function.path == "." or function.name == app for function in manifest.values())
    search = _Search(app, root, languages, alone)
    for function in manifest.values():
        search.add_named(function)
    if search.root_is_one:
        if "." not in search.taken and app not in manifest:
            search.add(FunctionManifest(app, ".", None, None, {}))
    else:
        for folder in sorted(root.iterdir()):
            if folder.name not in search.taken and not folder.name.startswith(".") and _is_folder(folder):
                search.add_recognised(folder)
    if search.errors:
        raise Problem("build-failed", "\n".join(search.errors))
    if not search.found:
        titles = ", ".join(runtime.title for runtime in languages.runtimes.values())
        raise Problem(
            "build-failed",
            "There is no function in this commit: no runtime recognises its root or one of its folders. "
            f"There are runtimes for {titles}. Make a function with `pilotlight new`, or name its folder, "
            f"runtime and handler in {MANIFEST}.",
        )
    if len(search.found) > limits.functions:
        raise Problem(
            "build-failed",
            f"The commit has {len(search.found)} functions; at most {limits.functions} may be in one app. "
            "Split it into several repositories.",
        )
    return sorted(search.found, key=lambda each: each.name)


def _is_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


@dataclass
class _Search:
    """One search through one commit: what was found so far, and what was wrong."""

    app: str
    root: Path
    languages: Languages
    alone: bool
    found: list[Found] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)  # paths that are a function's already

    def __post_init__(self) -> None:
        self.root_is_one = self.languages.recognise(self.root, by_file=self.alone) is not None

    def add_named(self, function: FunctionManifest) -> None:
        """Add a function that the manifest names."""
        path = function.path
        if path is None:
            # a repository that is one function needs no path: the function is named after the app
            at_root = function.name == self.app and self.root_is_one
            path = "." if at_root and not _is_folder(self.root / self.app) else function.name
        self.taken.add(path)
        folder = self.root / path
        # a folder behind a symbolic link is none of its own, and could lie outside
        if not folder.is_dir() or folder.resolve() != self.root.resolve() / path:
            near = suggestion(path, [each.name for each in self.root.iterdir() if _is_folder(each)])
            self.errors.append(
                f'{MANIFEST}: functions.{function.name}.path = "{path}": there is no such folder in this '
                f"commit.{near} Expected a folder of this repository."
            )
            return
        self.add(replace(function, path=path))

    def add_recognised(self, folder: Path) -> None:
        """Add the function in a folder, if some runtime recognises it."""
        recognised = self.languages.recognise(folder)
        if recognised is None:
            return
        if not is_name(folder.name):
            self.errors.append(
                f"The folder {folder.name!r} looks like a {recognised} function, but it can't name one. "
                f'Rename it ({NAME_RULE}), or add [functions.NAME] with path = "{folder.name}" to {MANIFEST}.'
            )
            return
        self.add(FunctionManifest(folder.name, folder.name, None, None, {}))

    def add(self, function: FunctionManifest) -> None:
        """Add a function whose folder is known: find its runtime, interpreter and handler."""
        name, path, folder = function.name, function.path or ".", self.root / (function.path or ".")
        wanted = function.runtime or self.languages.recognise(folder)
        if wanted is None:
            self.errors.append(
                f"Function {name!r}: no runtime recognises the folder {path!r}. Add the file that one looks "
                f"for, or set functions.{name}.runtime and functions.{name}.handler in {MANIFEST}."
            )
            return
        family = wanted.rstrip("0123456789.")
        runtime = self.languages.runtimes.get(family)
        if runtime is None:
            known = ", ".join(self.languages.runtimes)
            self.errors.append(
                f'{MANIFEST}: functions.{name}.runtime = "{wanted}": there is no such runtime.'
                f"{suggestion(family, self.languages.runtimes)} Expected one of {known}."
            )
            return
        interpreter = choose(self.languages.interpreters.get(family, ()), wanted)
        if function.image is not None:
            interpreter = Interpreter(family, wanted.removeprefix(family), "")
        if interpreter is None:
            self.errors.append(
                f"Function {name!r} needs {wanted}, which this machine does not have (it has "
                f"{self.languages.present()}). Install it, or set functions.{name}.runtime in {MANIFEST}."
            )
            return
        handler = function.handler or runtime.recognise(folder)
        if handler is None and has_image_file(runtime, folder):
            handler = runtime.image_file
        if handler is None:
            self.errors.append(
                f"Function {name!r}: the {family} runtime finds no handler in the folder {path!r}. "
                f"Add one, or set functions.{name}.handler in {MANIFEST}."
            )
        elif wrong := _wrong_with(function, runtime, folder, handler):
            self.errors.append(f"Function {name!r}: {wrong}")
        else:
            self.found.append(
                Found(name, path, folder, runtime, interpreter, handler, function.values, function.image)
            )


def _wrong_with(function: FunctionManifest, runtime: Runtime, folder: Path, handler: str) -> str | None:
    """Return what is wrong with a handler, or None."""
    if handler != runtime.image_file:
        return runtime.check(folder, handler)
    if not has_image_file(runtime, folder):
        return f'the handler "{handler}" needs that file in its folder; it may be no symbolic link.'
    if function.image is not None:
        return f"its {handler} builds its image, or `image` names one. Leave that out, or name a program."
    return None
