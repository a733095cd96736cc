"""`pilotlight images list|build`: the images of Docker's that functions run in, and base images for them."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import click

from cli import base_images, client, output
from cli.commands import flags
from cli.group import Group
from pilotlight.datafolder import DataFolder
from pilotlight.settings import current

_HEADS = ("IMAGE", "ID", "KIND", "FUNCTIONS", "SIZE", "AGE")
_SPARE = ("ID", "KIND")


@click.group(cls=Group, no_args_is_help=False)
def command() -> None:
    """Images of Docker's."""


@command.command("list", help="List those that functions and the platform use, or could.")
@flags.as_json
def list_(*, as_json: bool) -> None:
    """Print each image, what uses it, its size and its age. Raises Problem."""
    found = client.find().get(client.path("images"))["images"]
    if as_json:
        output.show_json(found)
        return
    if not found:
        output.note("This platform uses no image of Docker's: start it with --engine docker")
        return
    rows = [
        (
            each["name"] or "-",
            each["id"].removeprefix("sha256:")[:12],
            each["kind"],
            ", ".join(each["functions"]) or "-",
            output.size(each["size"]) if each["present"] else "gone",
            output.ago(each["created"]) if each["present"] else "-",
        )
        for each in found
    ]
    output.show_table(_HEADS, rows, _SPARE)


_EPILOG = """\
It runs on the machine of the platform, as root, and asks dockerd alone. Without --from mmdebstrap makes the
image of the packages that this machine's apt gets, so that no registry is needed. A function runs in it with

\b
    image = "pilotlight-python"

in pilotlight.toml, and FROM pilotlight-python begins with it in a Dockerfile. Functions that have been pushed
keep the image that they were pushed with.
"""


@command.command("build", help="Make the base image of a runtime anew.", epilog=_EPILOG)
@click.argument(
    "runtime", type=click.Choice(list(base_images.PACKAGES)), help="whose functions shall run in it"
)
@click.option(
    "--from", "image", metavar="IMAGE", help="begin with this image, of a registry or of this machine"
)
@click.option(
    "--suite", metavar="NAME", default="", help="the Debian to make it of (default: this machine's)"
)
@click.option(
    "--package",
    "packages",
    metavar="NAME",
    multiple=True,
    help="one more of Debian's packages; may be given again",
)
def build(*, runtime: str, image: str | None, suite: str, packages: tuple[str, ...]) -> None:
    """Make one, and say how it is used. Raises Problem."""
    if image is not None and (suite or packages):
        raise click.UsageError(
            "--from takes the image as it is, so --suite and --package can't stand beside it."
        )
    label = DataFolder(current().data).label
    size = asyncio.run(
        _adopt(image, runtime) if image is not None else _make(runtime, suite, packages, label)
    )
    from function_service.engines.docker import bases

    print(f"{bases.NAMES[runtime]} is made, {output.size(size)}")


async def _make(runtime: str, suite: str, packages: tuple[str, ...], label: str) -> int:
    from function_service.engines.docker import bases
    from function_service.engines.docker.daemon import Daemon

    daemon = Daemon(label)
    try:
        await daemon.information()  # before all the work: is it there?
        with tempfile.TemporaryDirectory() as folder:
            tar = Path(folder, "root.tar")
            await asyncio.to_thread(base_images.make, runtime, suite, packages, tar)
            return await bases.bring(daemon, tar, runtime, label)
    finally:
        await daemon.close()


async def _adopt(image: str, runtime: str) -> int:
    from function_service.contract import Output
    from function_service.engines.docker import bases
    from function_service.engines.docker.daemon import Daemon

    daemon = Daemon("")
    size = 0
    try:
        async with contextlib.aclosing(bases.adopt(daemon, image, runtime)) as items:
            async for item in items:
                if isinstance(item, Output):
                    output.note(item.line)
                else:
                    size = item
    finally:
        await daemon.close()
    return size
