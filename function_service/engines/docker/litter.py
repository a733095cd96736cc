"""The images that the platform has made itself: they carry a label, and go once they have lost their names.

A name moves to a newer image when one is made anew, and a process that is killed leaves what it was making.
"""

from typing import Any, Final

import docker.errors

LABEL: Final = "pilotlight.image"
"""On each image that the platform makes. Its values, the kinds: `host` (image.py), the label of the data
folder for what functions have built (dockerfiles.py), and that with `-base` for base images (bases.py)."""

_GONE, _IN_USE = 404, 409


def label(kind: str) -> str:
    """Return the instruction that puts the label on an image."""
    return f"LABEL {LABEL}={kind}"


def names(image: dict[str, Any]) -> list[str]:
    """Return the names of an image, as dockerd lists it."""
    return [name for name in image["RepoTags"] or () if not name.startswith("<none>")]


def remove_nameless(client: Any, kind: str) -> None:
    """Remove the images of a kind that have no name, but for those that a container is made of.

    Raises docker.errors.DockerException.
    """
    for image in client.images(filters={"label": f"{LABEL}={kind}", "dangling": True}):
        remove(client, image["Id"])


def remove(client: Any, image: str) -> bool:
    """Remove an image by its id, or take a name from it; return False where a container is made of it.

    The steps that only it was built by go with it. dockerd itself would also remove what it was built on, if
    that has no name: such as a base image that was made anew since, which a revision may still need.

    Raises docker.errors.DockerException.
    """
    try:
        found = client.inspect_image(image)
        client.remove_image(image, noprune=True)
        while found["Parent"]:
            kind, found = _kind(found), client.inspect_image(found["Parent"])
            if kind is None or kind != _kind(found) or found["RepoTags"] or found["RepoDigests"]:
                break
            client.remove_image(found["Id"], noprune=True)
    except docker.errors.APIError as error:
        if error.status_code not in (_GONE, _IN_USE):
            raise
        return bool(error.status_code == _GONE)
    return True


def _kind(image: dict[str, Any]) -> str | None:
    kind: str | None = (image["Config"]["Labels"] or {}).get(LABEL)
    return kind
