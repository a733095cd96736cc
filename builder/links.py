"""Where symbolic links lead, worked out on names alone: nothing need be on the disk yet."""

from collections.abc import Mapping
from typing import Final

_MAX_HOPS: Final = 40  # as Linux has it (path_resolution(7)); beyond it the link leads nowhere


def leaves(link: str, links: Mapping[str, str]) -> bool:
    """Tell whether the link at this path leads out of the folder that all paths are relative to.

    `links` are all links in that folder, with their targets. A target is walked as the kernel does it:
    part by part, following each link on the way. With a/up → .. and b → a/up/../x, b leaves, though
    its own text has as many names as dots.
    """
    if links[link].startswith("/"):
        return True
    place = link.split("/")[:-1]
    todo = [links[link]]
    hops = 0
    while todo:
        part, _, rest = todo.pop().partition("/")
        if rest:
            todo.append(rest)
        if part == "..":
            if not place:
                return True
            place.pop()
        elif part not in ("", "."):
            place.append(part)
            target = links.get("/".join(place))
            if target is not None:
                place.pop()
                hops += 1
                if hops > _MAX_HOPS:
                    return False
                if target.startswith("/"):
                    return True
                todo.append(target)
    return False
