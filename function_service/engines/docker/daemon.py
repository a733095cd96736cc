"""dockerd, asked off the event loop: in a few threads, with deadlines, in plain words where it fails."""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import docker
import docker.errors
import requests.exceptions

from pilotlight.problems import Problem
from pilotlight.settings import inherited

if TYPE_CHECKING:
    import aiohttp

_log = logging.getLogger(__name__)
_SOCKET = "unix:///var/run/docker.sock"
_VERSION = "1.41"  # of the API: Docker 20.10, which is in Debian 12
_TOO_OLD = re.compile(r"Minimum supported API version is ([0-9.]+[0-9])")
_AT_ONCE = 8  # calls
_WITHIN = 20.0  # seconds that dockerd has for a call
_RETRY_AFTER = 2  # seconds, told to callers
_AGAIN = 3.0  # seconds until a removal that failed is tried again
_EXIT_WITHIN = 10.0  # seconds that dockerd has to say how a container ended
PERIOD = 100_000  # microseconds, of the CPU quota
LABEL = "pilotlight"
_FAILURES = (docker.errors.DockerException, requests.exceptions.RequestException, OSError)

T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """What dockerd says of a container that has ended."""

    code: int
    out_of_memory: bool


class Daemon:
    """One dockerd, and the containers in it that carry the label of one data folder."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._address = inherited("DOCKER_HOST").get("DOCKER_HOST") or _SOCKET
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dockerd")
        self._own = threading.local()
        self._version = _VERSION
        self._clients: list[Any] = []
        self._removing: dict[str, asyncio.Task[None]] = {}

    @property
    def path(self) -> str:
        """The path of its Unix socket."""
        return self._address.removeprefix("unix://")

    async def call(self, work: Callable[[Any], T], within: float = _WITHIN) -> T:
        """Do work with a client of dockerd, a docker.APIClient. It goes on when nobody waits any more.

        Raises Problem `no-capacity` where dockerd does not answer, or refuses.
        """
        doing = asyncio.get_running_loop().run_in_executor(self._threads, self._do, work)
        doing.add_done_callback(_observed)
        try:
            async with asyncio.timeout(within):
                return await asyncio.shield(doing)
        except docker.errors.ImageNotFound:
            raise
        except TimeoutError as error:
            raise self._refused(f"has not answered for {within:g} s") from error
        except docker.errors.APIError as error:
            raise self._refused(f"refuses: {error.explanation or error}") from error
        except _FAILURES as error:
            raise self._refused(f"does not answer: {_cause(error)}") from error

    @contextlib.asynccontextmanager
    async def session(self) -> "AsyncIterator[aiohttp.ClientSession]":
        """Give a session for what streams, without deadlines; its URLs are relative to the API.

        Raises Problem `no-capacity`.
        """
        import aiohttp  # it takes a while to import, and few need it

        connector = aiohttp.UnixConnector(self.path)
        endless = aiohttp.ClientTimeout(total=None)
        try:
            base = f"http://docker/v{self._version}/"
            async with aiohttp.ClientSession(base, connector=connector, timeout=endless) as session:
                yield session
        except (aiohttp.ClientError, OSError) as error:
            raise self._refused(f"broke it off: {error}") from error

    def _do(self, work: Callable[[Any], T]) -> T:
        try:
            return work(self._client())
        except docker.errors.APIError as error:
            least = _TOO_OLD.search(error.explanation or "")
            if least is None:
                raise
            self._version, self._own.client = least[1], None  # a newer Docker, which says what it understands
            return work(self._client())

    def _client(self) -> Any:
        client = getattr(self._own, "client", None)
        if client is None:  # each thread has its own: their connections can't be shared
            client = docker.APIClient(base_url=self._address, version=self._version, timeout=_WITHIN)
            self._own.client = client
            self._clients.append(client)
        return client

    def _refused(self, what: str) -> Problem:
        remedy = "Docker is asked again with the next call; `systemctl status docker` tells more."
        return Problem(
            "no-capacity", f"dockerd at {self._address} {what}. {remedy}", retry_after=_RETRY_AFTER
        )

    async def information(self) -> dict[str, Any]:
        """Return what `docker info` tells. Raises Problem."""
        found: dict[str, Any] = await self.call(lambda client: client.info())
        return found

    async def remove_all(self) -> int:
        """Kill and remove every container of the data folder; return how many there were. Raises Problem."""
        wanted = {"label": f"{LABEL}={self._label}"}
        found = await self.call(lambda client: client.containers(quiet=True, all=True, filters=wanted))
        await asyncio.gather(*(self._remove(each["Id"]) for each in found))
        return len(found)

    async def _remove(self, container: str) -> None:
        def work(client: Any) -> None:
            try:
                client.remove_container(container, force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # it is gone; it is being removed already
                    raise

        await self.call(work)

    def bury(self, container: str) -> asyncio.Task[None]:
        """Kill and remove a container; where dockerd fails, again and again."""
        removing = self._removing.get(container)
        if removing is None:
            removing = asyncio.create_task(self._remove_at_last(container), name=f"remove {container}")
            self._removing[container] = removing
            removing.add_done_callback(lambda _: self._removing.pop(container))
        return removing

    async def runs(self, container: str) -> bool:
        """Tell whether a container runs. Raises Problem."""
        state = (await self.call(lambda client: client.inspect_container(container)))["State"]
        return bool(state["Running"])

    async def pid(self, container: str) -> int:
        """Return its process 1, as the host sees it. Raises Problem, and EOFError where it does not run."""
        state = (await self.call(lambda client: client.inspect_container(container)))["State"]
        if not state["Running"]:
            raise EOFError("its first process has ended")
        return int(state["Pid"])

    async def _remove_at_last(self, container: str) -> None:
        while True:
            try:
                await self._remove(container)
                return
            except Problem as problem:
                _log.warning("action=not-removed container=%s detail=%r", container, problem.detail)
            await asyncio.sleep(_AGAIN)

    async def ending(self, container: str) -> Ending | None:
        """Return what dockerd says of a container whose first process is dead; None where it says nothing."""

        def work(client: Any) -> Ending:
            client.wait(container, timeout=_EXIT_WITHIN)
            state = client.inspect_container(container)["State"]
            return Ending(state["ExitCode"], state["OOMKilled"])

        try:
            return await self.call(work, _EXIT_WITHIN)
        except Problem as problem:
            _log.warning("action=end-not-known container=%s detail=%r", container, problem.detail)
            return None

    async def tell_limits(self, container: str, memory: int, cores: float) -> None:
        """Have dockerd know limits that the control group has already, for where it sets them again itself.

        Where it does not take them, they hold until it does so.
        """

        def work(client: Any) -> None:
            quota = {"cpu_period": PERIOD, "cpu_quota": max(1000, int(cores * PERIOD))}
            with contextlib.suppress(docker.errors.NotFound):  # it has just ended
                client.update_container(container, mem_limit=memory, memswap_limit=memory, **quota)

        try:
            await self.call(work)
        except Problem as problem:
            _log.warning("action=limits-not-told container=%s detail=%r", container, problem.detail)

    async def said(self, container: str) -> str:
        """Return the last lines of a container that did not come to life, as far as dockerd tells."""
        try:
            text: bytes = await self.call(lambda client: client.logs(container, tail=20), _EXIT_WITHIN)
        except Problem:
            return ""
        return text.decode(errors="replace").strip()

    async def close(self) -> None:
        """Stop asking. What could not be removed is left to the next start."""
        for removing in list(self._removing.values()):
            removing.cancel()
        await asyncio.gather(*self._removing.values(), return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()


def _observed(doing: asyncio.Future[Any]) -> None:
    """Take note of an error that nobody waits for any more: who did was told that it took too long."""
    if not doing.cancelled():
        doing.exception()


def _cause(error: BaseException) -> str:
    """Return the innermost words of what the libraries wrap: `No such file or directory`, `timed out`."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
