"""Apps for a real platform: folders that are made git repositories and pushed, as a user does it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.platform import Up


@dataclass(frozen=True)
class Answer:
    """What came back from a call."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class App:
    """A git repository with the remote of a platform."""

    up: Up
    folder: Path

    @classmethod
    def make(cls, up: Up, name: str, files: dict[str, str]) -> "App":
        """Make a repository with one commit, and connect it."""
        app = cls(up, up.folder / "apps" / name)
        app.folder.mkdir(parents=True)
        app.git("init", "--quiet", "--initial-branch=main")
        app.commit(files)
        added = up.run("remote", "add", cwd=app.folder)
        assert added.returncode == 0, added.stderr
        return app

    def git(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env=self.up.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    def commit(self, files: dict[str, str]) -> None:
        """Write files and commit them; an executable is one that starts with #!."""
        for name, text in files.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
        self.git("add", "--all")
        done = self.git("commit", "--quiet", "--message", "Change it")
        assert done.returncode == 0, done.stderr

    def push(self, *words: str) -> subprocess.CompletedProcess:
        """Push main; what the platform printed is in stderr."""
        return self.git("push", *(words or ("pilotlight", "main")))

    def deploy(self) -> None:
        """Push, which must succeed."""
        done = self.push()
        assert done.returncode == 0, done.stderr


def call(
    up: Up,
    target: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    key: bool = True,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Call a function: target is NAME/rest."""
    platform = up.platform
    platform.key = platform.key if key else None
    with platform.request(method, f"/function/{target}", body, headers) as response:
        received = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, received, response.read())
