"""What the embedded engine itself knows of a sandbox that it has made or taken over."""

import asyncio
from dataclasses import dataclass

from function_service.engines.embedded import cgroup
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.former import Former
from function_service.engines.embedded.nursery import Forker, Zygote


@dataclass(eq=False)
class Handle:
    """The `handle` of a Sandbox. Its descriptors are the engine's, which closes them at its end."""

    pidfd: int
    control: Channel
    group: cgroup.Group
    uid: int
    data_listener: int | None = None  # until it is granted
    zygote: Zygote | None = None  # None where that is a former one
    output: int | None = None  # as long as it may be kept: Sandbox.output belongs to whoever reads it
    forker: Forker | None = None  # of a snapshot
    snapshot: str | None = None  # of a copy of one: what it was forked from
    watcher: asyncio.Task[None] | None = None  # of such a copy: notices its end
    egress_listener: int | None = None  # of such a copy, until it is granted
    former: Former | None = None  # the zygote of a former service that keeps it
    destroying: asyncio.Task[None] | None = None  # from the moment on at which it shall be no more
