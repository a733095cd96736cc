"""From the target of a request to a function's route. Pure; the table is swapped as a whole."""

from urllib.parse import unquote

from function_service.contract import Key, Route, RouteTable
from pilotlight.problems import Problem

PREFIX = "/function/"


def origin_form(target: str) -> str:
    """Return the path and query of a request target as they were sent.

    A proxy may be asked with the whole URL (RFC 9112 §3.2.2); scheme and authority are cut off then.
    """
    if target.startswith("/"):
        return target
    _, separator, rest = target.partition("://")
    if not separator:
        return target
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


def split(target: str) -> tuple[str, str]:
    """Cut `/function/NAME/rest?query` into the name and what the function sees, `/` where nothing follows.

    The rest stays as it was sent, percent-encoding included.
    """
    start = len(PREFIX)
    end = len(target)
    for mark in "/?#":
        place = target.find(mark, start, end)
        if place >= 0:
            end = place
    name, rest = target[start:end], target[end:]
    if "%" in name:
        name = unquote(name)
    return name, rest if rest.startswith("/") else "/" + rest


class Routes:
    """The table that is valid now. It is None until the function service has told the first one."""

    def __init__(self) -> None:
        self.table: RouteTable | None = None

    def find(self, name: str) -> Route:
        """Return the route of a function. Raises Problem `unknown-function` or `unavailable`."""
        table = self.table
        if table is None:
            raise Problem(
                "unavailable",
                "The gateway does not know the functions yet: the function service has not answered so far. "
                "Try again in a moment.",
                retry_after=1,
            )
        route = table.routes.get(name)
        if route is None:
            raise Problem(
                "unknown-function",
                f"There is no function named {name[:80]!r} here. `pilotlight list` shows those there are; "
                "`git push` deploys new ones.",
            )
        return route

    def app(self, name: str) -> str | None:
        """Return the app of a function, None where there is none."""
        route = self.table.routes.get(name) if self.table is not None else None
        return route.app if route is not None else None

    @property
    def keys(self) -> dict[str, Key]:
        """The keys by their hexadecimal SHA-256."""
        return self.table.keys if self.table is not None else {}
