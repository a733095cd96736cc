"""Finds a function's handler, and decides what it is: a handler of ours, an ASGI or a WSGI application."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from types import FunctionType, MethodType
from typing import Any

from .failures import own_trace

SYNC, ASYNC, WSGI, ASGI = "sync", "async", "wsgi", "asgi"
_SHAPES = (
    "It must be `def handle(request)`, `async def handle(request)`, an ASGI application or a WSGI application"
)


class LoadError(Exception):
    """A function that can't be loaded; the text is what its author must know."""


def find(handler: str) -> Any:
    """Import what `handler` ("module:attribute") names. Raises LoadError."""
    module_name, separator, attribute = handler.partition(":")
    if not separator or not module_name or not attribute:
        raise LoadError(
            f"The handler {handler!r} is not of the form MODULE:NAME. "
            'Write for example handler = "handler:handle" in pilotlight.toml.'
        )
    found = _import(module_name)
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise LoadError(_no_attribute(found, module_name, attribute, name))
        found = getattr(found, name)
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise LoadError(
                f"There is no module {name!r} in the function's folder, which holds {_listed(os.listdir())}. "  # noqa: PTH208
                'Name the right one with handler = "MODULE:NAME" in pilotlight.toml.'
            ) from None
        top = missing.partition(".")[0]
        raise LoadError(
            f"The function imports {missing!r}, which is not installed. If it is a package, add the one that "
            f"has {top!r} to requirements.txt in the function's folder.\n{where(error)}"
        ) from error
    except SyntaxError as error:
        lines = traceback.format_exception_only(type(error), error)
        raise LoadError(f"The function can't be imported:\n{''.join(lines).rstrip()}") from error
    except SystemExit as error:
        raise LoadError(
            f"The function ends the process while it is imported, with code {error.code!r}. Put such code "
            f'under `if __name__ == "__main__":`.\n{where(error)}'
        ) from error
    except Exception as error:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        raise LoadError(f"The function can't be imported: {text}\n{where(error)}") from error


def where(error: BaseException) -> str:
    """Return the last places of the trace that lie in the function's own files, at most three."""
    here = os.getcwd() + os.sep  # noqa: PTH109
    frames = [
        frame
        for frame in traceback.extract_tb(own_trace(error.__traceback__))
        if frame.filename.startswith(here) or not os.path.isabs(frame.filename)  # noqa: PTH117
    ]
    lines = []
    for frame in frames[-3:]:
        if frame.filename.startswith("<frozen"):
            continue
        name = frame.filename.removeprefix(here)
        lines.append(f"  {name}, line {frame.lineno}, in {frame.name}")
        if frame.line:
            lines.append(f"    {frame.line}")
    return "\n".join(lines)


def _listed(names: Any) -> str:
    shown = sorted(name for name in names if not name.startswith(("_", ".")))
    if not shown:
        return "nothing"
    return ", ".join(shown[:12]) + (" and more" if len(shown) > 12 else "")


def _no_attribute(owner: Any, module: str, attribute: str, name: str) -> str:
    own = (
        [
            key
            for key, value in vars(owner).items()
            if not inspect.ismodule(value) and getattr(value, "__module__", module) == module
        ]
        if hasattr(owner, "__dict__")
        else []
    )
    return (
        f"The module {module!r} has no {attribute!r}"
        + (f" (it is {name!r} that is missing)" if name != attribute else "")
        + f"; it has {_listed(own)}. "
        'Name the handler with handler = "MODULE:NAME" in pilotlight.toml.'
    )


def kind_of(target: Any, name: str) -> str:
    """Decide what a handler is, by the arguments that it must be given. Raises LoadError."""
    if not callable(target):
        raise LoadError(
            f"The handler {name!r} is of type {type(target).__name__}, which can't be called. {_SHAPES}."
        )
    asynchronous = _is_async(target)
    required = _required(target)
    if required is None and name.rpartition(":")[2] == "handle":
        required = 1
    if required == 1:
        return ASYNC if asynchronous else SYNC
    if required == 2:
        return WSGI
    if required == 3 and not inspect.isclass(target):
        return ASGI
    if required is None:
        raise LoadError(
            f"The handler {name!r} takes any arguments, so that nobody can tell what it is. {_SHAPES}; "
            "wrappers should use functools.wraps, or be named `handle`."
        )
    raise LoadError(f"The handler {name!r} takes {required} arguments. {_SHAPES}.")


def _is_async(target: Any) -> bool:
    if type(target) is FunctionType and not target.__dict__:  # a plain one: quicker, on fewer pages
        return bool(target.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    while True:
        call = target if isinstance(target, (FunctionType, MethodType)) else getattr(target, "__call__", None)  # noqa: B004
        for function in (target, call):
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                return True
        inner = getattr(target, "__wrapped__", None) or getattr(target, "func", None)  # a functools.partial
        if inner is None or inner is target or not callable(inner):
            return False
        target = inner


def _required(target: Any) -> int | None:
    """Return how many positional arguments must be given, None where that can't be told."""
    if type(target) is FunctionType and not hasattr(target, "__wrapped__"):  # quicker than a signature
        code = target.__code__
        if not code.co_kwonlyargcount and not code.co_flags & inspect.CO_VARARGS:
            return _at_least_one(code.co_argcount - len(target.__defaults__ or ()), code.co_argcount)
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    return _at_least_one(sum(p.default is p.empty for p in positional), len(positional))


def _at_least_one(required: int, accepted: int) -> int:
    """`def handle(request=None)` takes a request as well."""
    return 1 if required == 0 and accepted else required


def prefix() -> str:
    """Return the path at which the world sees the function, for applications that link to themselves."""
    name = os.environ.get("PILOTLIGHT_FUNCTION", "")
    return f"/function/{name}" if name else ""


def flush_lines() -> None:
    """Have what a function prints go out line by line, as it would on a terminal."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
