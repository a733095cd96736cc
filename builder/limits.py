"""What one push may use. The numbers stand in docs/MANIFEST.md too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one push. Sizes are in bytes, times in seconds."""

    pack: int = 512 << 20  # what git sends
    repository: int = 1 << 30  # all of an app's history; one push may go beyond
    tree: int = 512 << 20  # all files of a commit
    file: int = 100 << 20
    files: int = 20_000
    path: int = 1_000  # bytes of a path within the repository
    functions: int = 100  # in one app
    push: float = 1_800.0  # from the first byte to the last
    turn: float = 600.0  # waiting for other pushes and builds
    step: float = 300.0  # one command of a build
    image: float = 900.0  # a build by a Dockerfile
    output: int = 1 << 30  # what one step may write
    memory: int = 1 << 30  # of one step
    cpu: float = 2.0  # cores of one step
    lines: int = 10_000  # of one step that are shown
    line: int = 2_000  # characters of one line that are shown
    builds: int = 2  # at a time
    requests: int = 64  # git processes at a time
    grace: float = 5.0  # how long what is under way may take once it is told to end
