"""A change of the registry spreads: it is over when a gateway of each machine answers by it.

Without that, whoever has pushed a function, or made a key, could be told by the next machine that there is no
such thing. On a platform of one machine there is none of this.
"""

import asyncio
import logging
from typing import Final

from function_service.homes import Homes
from pilotlight.machines import Link
from pilotlight.problems import Problem

_log = logging.getLogger(__name__)

PATH: Final = "/machines/editions/"
_WITHIN: Final = 3.0  # seconds; a machine that has just died is among the others for longer than that


class Spread:
    """Asks the other machines whether they have heard of a change."""

    def __init__(self, homes: Homes, link: Link) -> None:
        self._homes = homes
        self._link = link

    async def reached(self, edition: int) -> None:
        """Return once the other machines have that edition of the registry, or after three seconds."""
        deadline = asyncio.get_running_loop().time() + _WITHIN
        try:
            async with asyncio.timeout_at(deadline):
                await self._homes.meet()  # one that has just started would not be known yet
        except (Problem, TimeoutError) as error:
            _log.warning("action=meet-failed reason=%r", str(error) or "no answer in time")
        others = self._homes.machines.addresses
        await asyncio.gather(*(self._heard(address, edition, deadline) for address in others))

    async def _heard(self, address: str, edition: int, deadline: float) -> None:
        import aiohttp  # it takes a while to import, and few need it

        reason = ""
        try:
            async with (
                asyncio.timeout_at(deadline),
                aiohttp.ClientSession() as session,
                session.get(f"https://{address}{PATH}{edition}", ssl=self._link.client) as answer,
            ):
                if answer.status != 204:
                    reason = f"it answers {answer.status}"
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or "no answer in time"
        if reason:
            _log.warning("action=not-heard machine=%s edition=%d reason=%r", address, edition, reason)
