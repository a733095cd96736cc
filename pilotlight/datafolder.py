"""The data folder: what lies where in it, and that one platform at a time uses it."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pilotlight.problems import Problem


@dataclass(frozen=True)
class DataFolder:
    """Where everything that outlives a process is kept.

    admin.key        the first key, readable by its owner alone
    secrets.key      what the secrets are encrypted with, unless it lies elsewhere (function service)
    audit.jsonl      who did what; older ones are audit.1.jsonl and so on (function service)
    platform.json    the address and the process of the platform that runs now
    id               tells this folder from others, where they share a store (function service)
    registry.db      apps, functions, revisions, keys, secrets (function service), unless they are in Redis
    layers/          the code layers, one folder a digest (function service)
    logs/            what functions printed, and their calls (function service)
    data/            the documents (baas), unless they are in Redis
    repositories/    the bare git repositories (builder)
    builds/          work folders of builds that run now (builder)
    zygotes/         sockets by which the function service finds what a killed one has left
    run/             sockets, and whatever else is worthless after a restart
    """

    root: Path

    @property
    def admin_key(self) -> Path:
        """The file with the first key."""
        return self.root / "admin.key"

    @property
    def secrets_key(self) -> Path:
        """The file with the key that secrets are encrypted with, where no other is named."""
        return self.root / "secrets.key"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.root / "audit.jsonl"

    @property
    def platform(self) -> Path:
        """The file by which the commands find the platform that runs now."""
        return self.root / "platform.json"

    @property
    def registry(self) -> Path:
        """The database of the function service."""
        return self.root / "registry.db"

    @property
    def layers(self) -> Path:
        """The layers, by digest."""
        return self.root / "layers"

    @property
    def logs(self) -> Path:
        """What functions printed."""
        return self.root / "logs"

    @property
    def documents(self) -> Path:
        """The folder of the data API's database."""
        return self.root / "data"

    def store(self, name: str) -> Path:
        """Return the database of a store: `registry` or `documents`."""
        return {"registry": self.registry, "documents": self.documents / "documents.db"}[name]

    @property
    def repositories(self) -> Path:
        """The bare git repositories, APP.git."""
        return self.root / "repositories"

    @property
    def builds(self) -> Path:
        """Work folders of running builds."""
        return self.root / "builds"

    @property
    def zygotes(self) -> Path:
        """Sockets of the processes that keep instances while the function service restarts."""
        return self.root / "zygotes"

    @property
    def run(self) -> Path:
        """Sockets and other things of this run."""
        return self.root / "run"

    @property
    def instances(self) -> Path:
        """The sockets of the instances."""
        return self.run / "instances"

    def socket(self, service: str) -> Path:
        """Return the path of a service's socket."""
        return self.run / f"{service}.sock"

    @property
    def label(self) -> str:
        """A short name, unique for this folder, that marks what we make outside of it (cgroups)."""
        return "pilotlight-" + hashlib.sha256(str(self.root).encode()).hexdigest()[:10]

    def prepare(self) -> None:
        """Make the folder and its parts. Raises Problem where that can't be done."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
            own = (self.layers, self.logs, self.zygotes)
            for part in (*own, self.documents, self.repositories, self.builds, self.run):
                part.mkdir(exist_ok=True, mode=0o700)
            self.instances.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise Problem(
                "invalid-request",
                f"The data folder {self.root} can't be used: {error.strerror or error}. "
                "Name another one with --data, or make this one writable.",
            ) from error

    @contextlib.contextmanager
    def telling_when_full(self) -> Iterator[None]:
        """Raise Problem `unavailable`, which names this folder, for an error that tells of a full disk."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Problem(
                "unavailable",
                f"The disk is full on which the data folder {self.root} lies. Make room on it.",
            ) from error

    def lock(self) -> int:
        """Claim the folder for this process; the returned descriptor holds the claim until it is closed.

        Raises Problem when another running platform holds it.
        """
        try:
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Problem(
                "invalid-request",
                f"The data folder {self.root} is not writable: {error.strerror}. "
                "Name another one with --data.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            os.close(descriptor)
            raise Problem(
                "conflict",
                f"The data folder {self.root} is in use by another running platform (process {owner}). "
                "Stop that one, or name another folder with --data.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor

    def holder_lives(self) -> bool:
        """Tell whether the process that claimed the folder last is still there, whoever's it is.

        Where it is not but the folder is locked, what it started is just ending.
        """
        try:
            os.kill(int((self.root / "lock").read_text()), 0)
        except PermissionError:
            return True
        except (OSError, ValueError):
            return False
        return True
