"""One cold start, step by step: blank sandbox → code attached → ready. And what to say when it fails."""

import asyncio
import logging
import signal
import time
from typing import Any

from function_service import interpreters
from function_service.contract import LogLine, Revision, Stages
from function_service.engines.base import Assignment, Engine, Sandbox, StartError, Untouched
from function_service.instance import Instance, State, explain
from function_service.layers.store import LayerStore
from function_service.lines import LineReader
from function_service.logs import LogBook
from function_service.pool import Pool
from function_service.snapshots import Snapshots
from pilotlight import clock
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)
_MARK = (
    "\x1e"  # begins a line by which a shim says for which request the next ones are (runtimes/contract.md)
)
_LONGEST_ID = 129  # characters of such a line
_LAST_WORDS = 0.5  # seconds to read what a dead process has printed
_NATIVE_LIMIT = 10.0  # seconds within which a native program must listen, if its time-out is not longer
_PATIENCE = 60.0  # seconds that a push at least waits for a sandbox, since no caller does
_MARGIN = 0.1  # seconds by which the cause of a late start comes before the caller's own deadline
_OF_THE_HOST = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}  # an image may have it elsewhere
_RETRIES = 8  # as many sandboxes may turn out to be dead; all that wait are when their zygote was killed
_LOADING = _RETRIES // 2 + 1  # what a start costs whose code was being loaded: it is tried twice, no more
_NOTICED = 0.005  # seconds until what was killed is known to be gone everywhere


class _Killed(Problem):
    """A start that was ended from outside before any call could reach it, so another one may take its place.

    `cost` is in retries: a function may be the reason itself where its code was being loaded already.
    """

    def __init__(self, cost: int, problem: Problem) -> None:
        super().__init__(problem.kind, problem.detail, retry_after=problem.retry_after, **problem.extra)
        self.cost = cost


async def run(
    revision: Revision,
    pool: Pool,
    engine: Engine,
    layers: LayerStore,
    secrets: dict[str, str],
    logs: LogBook | None,
    wait: float,
    snapshots: Snapshots,
    *,
    called: bool,
) -> Instance:
    """Start an instance within about `wait` seconds. Raises Problem, and leaves nothing behind then.

    What it prints is kept in `logs`, if any; its last lines are told in any case. `snapshots` is told what
    the start has cost, and whether it was for a call. Where it is for none, `wait` is for the code alone.
    """
    assignment = assignment_of(revision, layers, secrets)
    deadline = time.monotonic() + wait
    retries = _RETRIES
    with pool.starting():
        while True:
            try:
                instance, code = await _start(
                    revision, assignment, pool, engine, logs, deadline - time.monotonic(), called=called
                )
                at_once = pool.starts
                break
            except _Killed as killed:
                retries -= killed.cost
                if retries < 0 or time.monotonic() >= deadline:
                    raise
                _log.warning("action=start-again function=%s reason=%r", revision.config.name, killed.detail)
                await asyncio.sleep(_NOTICED)
    # In a burst each start takes as long as it does because of the others, which a snapshot would not change
    snapshots.started(revision, assignment, code / at_once, called=called)
    return instance


async def _start(
    revision: Revision,
    assignment: Assignment,
    pool: Pool,
    engine: Engine,
    logs: LogBook | None,
    wait: float,
    *,
    called: bool,
) -> tuple[Instance, float]:
    """Try once; return the milliseconds that loading the code took, too."""
    began = time.perf_counter()
    patience = wait if called else max(wait, _PATIENCE)
    try:
        async with asyncio.timeout(patience):
            sandbox, stages = await pool.take(revision.id, interpreters.key(revision))
    except TimeoutError:
        raise Problem(
            "no-capacity",
            f"No sandbox could be made within {patience:.1f} s; this machine is too busy.",
            retry_after=1,
        ) from None
    except Problem as problem:
        if problem.kind != "no-capacity":
            raise
        raise _Killed(_RETRIES // 2, problem) from problem  # the zygote may be, and the next one is booted
    instance = Instance(sandbox, revision, time.time(), stages, clock.steady())
    collector = asyncio.create_task(collect(instance, logs), name=f"logs {instance.id}")
    instance.collector = collector
    waited = time.perf_counter() - began if called else 0.0  # else the machine was busy
    limit = max(_MARGIN, wait - _MARGIN - waited)
    if revision.config.runtime == "native":
        limit = min(limit, max(_NATIVE_LIMIT, revision.config.timeout))
    attaching = time.perf_counter()
    try:
        async with asyncio.timeout(limit):
            await engine.attach(sandbox, assignment)
    except BaseException as error:
        instance.become(State.ENDED)
        await _bury(engine, sandbox, collector, natural=isinstance(error, EOFError))
        if isinstance(error, (StartError, EOFError, TimeoutError)):
            raise _problem(error, instance, limit) from error
        raise
    code = (time.perf_counter() - attaching) * 1000
    instance.stages = Stages(container=stages.container, runtime=stages.runtime, code=code)
    instance.become(State.IDLE)
    return instance, code


async def _bury(engine: Engine, sandbox: Sandbox, collector: asyncio.Task[None], *, natural: bool) -> None:
    try:
        if natural:
            # It is about to end by itself: its own exit status is the cause that its author wants to know
            await asyncio.wait([sandbox.ended], timeout=1)
    finally:
        await engine.destroy(sandbox)  # also when the caller goes just now
    await asyncio.wait([collector], timeout=_LAST_WORDS)


async def collect(instance: Instance, logs: LogBook | None) -> None:
    """Keep every line that an instance prints, until it is dead."""
    reader = LineReader(instance.sandbox.output)
    request = ""
    try:
        async for batch in reader.batches():
            now = time.time()
            lines = []
            for line, truncated in batch:
                if line.startswith(_MARK):
                    request = line[1:_LONGEST_ID]
                else:
                    instance.tail.append(line)
                    lines.append(
                        LogLine(
                            time=now, instance=instance.id, line=line, truncated=truncated, request=request
                        )
                    )
            if logs is not None and lines:
                logs.append(instance.function, lines)
    finally:
        reader.close()


def assignment_of(revision: Revision, layers: LayerStore, secrets: dict[str, str]) -> Assignment:
    """Return what makes an instance of a blank sandbox. Raises Problem `init-failed`."""
    config, image = revision.config, revision.image
    missing = [name for name in config.secrets if name not in secrets]
    if missing:
        raise Problem(
            "init-failed",
            f"The secret {missing[0]!r} that {config.name!r} names does not exist. "
            f"Set it: pilotlight secrets set {missing[0]}",
        )
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",  # noqa: S108  the sandbox's own
        "LANG": "C.UTF-8",
        **(_OF_THE_HOST if image is None else image.env),
        **config.env,
        **{name: secrets[name] for name in config.secrets},
        "PILOTLIGHT_FUNCTION": config.name,
        "PILOTLIGHT_REVISION": revision.id,
    }
    return Assignment(
        app=revision.app,
        function=config.name,
        handler=config.handler,
        concurrency=config.concurrency,
        env=env,
        code=layers.path(revision.code),
        dependencies=layers.path(revision.dependencies) if revision.dependencies else None,
        memory=config.memory,
        cpu=config.cpu,
        egress=config.egress,
        command=image.command if image is not None else (),
        folder=image.folder if image is not None and image.command else "/function",
    )


def _problem(error: BaseException, instance: Instance, limit: float) -> Problem:
    config = instance.revision.config
    extra: dict[str, Any] = {"logs": list(instance.tail)}
    if isinstance(error, StartError):
        return Problem("init-failed", str(error), **extra)
    if isinstance(error, TimeoutError):
        if config.runtime == "native":
            detail = (
                f"It did not listen on port $PORT within {limit:.1f} s of its start. If it needs longer, "
                "raise timeout in the manifest."
            )
            return Problem("init-failed", detail, **extra)
        return Problem("timeout", f"It was still loading its code after {limit:.1f} s.", **extra)
    end = instance.sandbox.ended.result()
    kind, detail = explain(end, config.memory)
    if kind != "crashed":
        return Problem(kind, detail, **extra)
    problem = Problem("init-failed", f"{detail} That was while it started.", **extra)
    if isinstance(error, Untouched):
        return _Killed(1, problem)
    return _Killed(_LOADING, problem) if end.signal == signal.SIGKILL else problem
