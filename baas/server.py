"""The service as a whole: the store, both faces, the egress proxy, and the order of starting and stopping."""

import asyncio
from collections.abc import Callable
from typing import Final

from baas.app import Faces
from baas.dial import Dialer
from baas.egress import EgressProxy
from baas.egress_rules import Rules
from baas.face import Face
from baas.feed import Feeds
from baas.listeners import Grant, Handover, Service
from baas.metrics import Metrics
from baas.plan import log_of
from baas.query import Documents
from baas.quota import Quota
from baas.relay import Relay
from pilotlight import sockets, stores
from pilotlight.datafolder import DataFolder
from pilotlight.settings import Settings, outside_proxy

_GRACE: Final = 3.0  # seconds that requests under way have when the service stops
_OPERATOR_CONNECTIONS: Final = 1024
_DATA_CONNECTIONS: Final = 64  # of one instance
_EGRESS_CONNECTIONS: Final = 64  # of one instance


async def serve(
    settings: Settings,
    data: DataFolder,
    *,
    stopping: asyncio.Event,
    ready: Callable[[], None],
) -> None:
    """Serve the data API until `stopping` is set; `ready` is called once everything can be reached.

    It returns within a few seconds then. Raises Problem where the store, or the address in HTTPS_PROXY,
    can't be used.
    """
    metrics = Metrics()
    dialer = Dialer(outside_proxy())
    store = await stores.documents(settings.store, data, log_of)
    feeds = Feeds(store, metrics)
    quota = Quota(store, settings.max_documents)
    try:
        async with Relay(data.socket("gateway")) as calls:
            faces = Faces(Documents(store, quota), feeds, calls, metrics)

            def make(grant: Grant) -> Service:
                if grant.kind != "data":
                    rules = Rules(grant.egress, internal=grant.kind == "build")
                    return EgressProxy(rules, dialer, metrics, connections=_EGRESS_CONNECTIONS)
                return Face(faces.function(grant.app, grant.function), connections=_DATA_CONNECTIONS)

            def count(kind: str, number: int) -> None:
                metrics.listeners.labels(kind).set(number)

            operator = Face(faces.operator(), connections=_OPERATOR_CONNECTIONS)
            handover = Handover(data.socket("listeners"), make, count)
            path = data.socket("baas")
            await operator.start(sockets.listen(path))
            try:
                # When the hand-over fails, the group ends the wait for `stopping`, and the service with it
                async with asyncio.TaskGroup() as tasks:
                    listening = tasks.create_task(handover.run(ready, _GRACE), name="hand-over of listeners")
                    await stopping.wait()
                    feeds.end()
                    listening.cancel()
            finally:
                feeds.end()
                await operator.close(_GRACE)
                path.unlink(missing_ok=True)
    finally:
        await store.close()
