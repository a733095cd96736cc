"""Which folders are Python functions, and what can be one's handler: told from the files alone."""

import ast
import tomllib
from pathlib import Path

_CONVENTIONS = (("handler.py", ("handle",)), ("app.py", ("app", "handle")), ("main.py", ("app", "handle")))


def recognise(folder: Path) -> str | None:
    """Return the conventional handler: handler.py, or an app.py or main.py that defines `app` or `handle`."""
    if (folder / "handler.py").is_file():
        return "handler:handle"
    for file, names in _CONVENTIONS[1:]:
        path = folder / file
        if path.is_file():
            defined = _defined(path)
            for name in names:
                if name in defined:
                    return f"{path.stem}:{name}"
    return None


def _defined(path: Path) -> set[str]:
    """Return the names that a module's top level defines; empty where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
    return names


def check(folder: Path, handler: str) -> str | None:
    """Return what is wrong with a handler ("module:attribute") as far as the files tell, or None."""
    module, separator, attribute = handler.partition(":")
    names = [*module.split("."), *attribute.split(".")]
    if not separator or not all(name.isidentifier() for name in names):
        return f'the handler "{handler}" is not of the form MODULE:NAME, such as "handler:handle".'
    path = folder.joinpath(*module.split("."))
    if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
        file = path.with_suffix(".py").relative_to(folder)
        return f'the handler "{handler}" needs the file {file}, which is not there. Add it, or name another.'
    try:
        tomllib.loads((folder / "pyproject.toml").read_text())
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return f"its pyproject.toml can't be read: {error}."
    return None
