"""Where gateways that share a port keep their tallies: whichever is asked for metrics tells those of all.

Each writes a file of its own in the folder of sockets, before it tells its counts to anybody and once a
second. So Prometheus never sees a sum go down: not when another gateway answers, not when one has died, and
not when its successor, which goes on from the file, has taken its place.
"""

import logging
from pathlib import Path

import msgspec

from gateway.tally import Tally

_log = logging.getLogger(__name__)


class Ledger:
    """The files. A gateway that is alone has none."""

    def __init__(self, folder: Path, number: int, gateways: int) -> None:
        """`number` is this gateway's, from 1 to `gateways`."""
        files = [folder / f"gateway-{each}.tally" for each in range(1, gateways + 1)]
        self.shared = gateways > 1
        self._own = files[number - 1] if self.shared else None
        self._others = [file for file in files if file != self._own] if self.shared else []

    def write(self, tally: Tally) -> None:
        """Keep what this gateway has counted so far."""
        if self._own is None:
            return
        fresh = self._own.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.msgpack.encode(tally))
            fresh.replace(self._own)
        except OSError as error:  # calls are worth more than their count
            _log.warning("action=tally-not-kept file=%s error=%r", self._own, error)

    def former(self) -> Tally:
        """Return what a process with this number had counted when it died."""
        return (_read(self._own) if self._own is not None else Tally()).counted()

    def others(self) -> list[Tally]:
        """Return what the other gateways have written last."""
        return [_read(file) for file in self._others]


def _read(file: Path) -> Tally:
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=Tally)
    except FileNotFoundError:  # it has counted nothing yet
        return Tally()
