"""How long a document lives that is changed in part while time passes."""

from collections.abc import Sequence
from dataclasses import replace

from baas.query import Documents
from baas.quota import Quota
from baas.request import MERGE_PATCH, Action, Operation
from pilotlight.store import Write
from pilotlight.store_memory import MemoryStore


class SlowStore(MemoryStore):
    """A store that makes a write a second after it was asked to, by a clock that nobody else has."""

    now = 1000.0

    def __init__(self) -> None:
        super().__init__(clock=lambda: self.now)

    async def write(self, writes: Sequence[Write]) -> list[int]:
        self.now += 1
        return await super().write(writes)


async def test_a_document_that_is_changed_all_the_time_ends_when_it_was_to() -> None:
    store = SlowStore()
    documents = Documents(store, Quota(store, 1 << 20))
    hits = Operation(app="shop", collection="hits", key="k", action=Action.INCREMENT)
    patch = replace(hits, action=Action.PATCH, media_type=MERGE_PATCH, body=b"7")
    await documents.run(replace(hits, ttl=10))
    for change in (hits, patch) * 3:
        await documents.run(change)
        entry = await store.get("data/shop/hits", "k")
        assert entry is not None
        assert entry.expires == 1011
