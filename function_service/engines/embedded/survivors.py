"""Instances that outlive the function service that started them, and how the next one takes them over.

While a service lives, it has its zygotes keep the instances that gateways hold (`keep`; lingering.py tells
what a zygote does with them). The next service finds these zygotes by the sockets in a folder of the data
folder, and what it needs to know of each instance in the memo that lies beside its descriptors. The memo is a
file in memory that the zygote never reads, since what is in its memory can be read by each function that it
forks.

The next service sends no new calls to these instances: it watches over them, and ends them.
"""

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from function_service.contract import Stages
from function_service.engines.base import End, Sandbox
from function_service.engines.embedded import cgroup, messages
from function_service.engines.embedded.channel import Channel
from function_service.engines.embedded.cradle import end_of, remove
from function_service.engines.embedded.former import Former, Kept, Memo
from function_service.engines.embedded.grants import Grant
from function_service.engines.embedded.handle import Handle

_log = logging.getLogger(__name__)


def keep(sandbox: Sandbox, handle: Handle, grants: list[Grant], note: str) -> None:
    """Have an instance outlive this process, if that can be; see former.Kept. All descriptors are copied."""
    if handle.zygote is None or handle.output is None:
        return
    told = [grant.message for grant in grants]
    memo = msgspec.json.encode(Memo(sandbox.interpreter, handle.uid, told, note))
    try:
        with open(os.memfd_create("memo", os.MFD_CLOEXEC), "wb", buffering=0) as file:  # noqa: PTH123
            file.write(memo)
            descriptors = [handle.pidfd, file.fileno(), handle.output, *(g.descriptor for g in grants)]
            handle.zygote.keep(sandbox.id, handle.snapshot, descriptors)
    except OSError as error:  # too many files are open: its calls end with this process then, no sooner
        _log.warning("action=not-kept instance=%s error=%r", sandbox.id, error)


def take_over(former: Former, kept: Kept, hierarchy: cgroup.Hierarchy, instances: Path) -> Sandbox:
    """Return what a former zygote keeps as a sandbox of ours; its grants are the caller's."""
    control, nobody = messages.pair()  # as that of every instance that serves: the other side has closed it
    nobody.close()
    group = cgroup.Group(hierarchy, kept.id)
    handle = Handle(kept.pidfd, Channel(control), group, kept.memo.user, former=former)
    ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
    former.watch(kept.id, lambda status: ended.set_result(end_of(status, group)))
    path = instances / f"{kept.id}.sock"
    return Sandbox(kept.id, kept.memo.interpreter, path, Stages(), kept.output, ended, handle)


class Formers:
    """The zygotes of former services, until they have ended."""

    def __init__(self, hierarchy: cgroup.Hierarchy) -> None:
        self._hierarchy = hierarchy
        self._burying: dict[Former, asyncio.Task[None]] = {}

    def follow(self, former: Former) -> None:
        """Follow what becomes of what it keeps, and clean up when it has ended."""
        former.begin()
        self._burying[former] = asyncio.create_task(self._bury(former), name="bury a former zygote")

    async def _bury(self, former: Former) -> None:
        await former.gone.wait()
        await former.close()
        for name in former.snapshots:  # nobody else knows them
            await remove(cgroup.Group(self._hierarchy, name))
        del self._burying[former]

    async def close(self) -> None:
        """End all of them."""
        for former, burying in list(self._burying.items()):
            await former.close()
            if not former.gone.is_set():
                burying.cancel()
            await asyncio.gather(burying, return_exceptions=True)
