"""What is told of calls afterwards: which call a printed line belongs to, and the story of one request.

Gateways report calls when they have ended, and instances print while these go on. Some shims say for which
request; else the time and the instance are what ties a line to its call.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from function_service.contract import LogLine, Usage
from function_service.logs import LogBook

_LATE = 0.1  # seconds after the end of a call within which what it printed has been read, mostly
_LATE_MARKED = 2.0  # the same for lines whose request is known: no other call's can be taken for them
_LINES = 10_000  # of a function's latest, among which those of a call are looked for
_CALLS = 100  # of a request's latest: callers choose its id, and may give the same to all that they ever make


class CallsByInstance:
    """Finds the call that an instance was busy with at some time."""

    def __init__(self, calls: Iterable[Usage]) -> None:
        self._calls: dict[str, list[Usage]] = defaultdict(list)
        for call in sorted(calls, key=lambda call: call.started):
            if call.instance:
                self._calls[call.instance].append(call)
        self._starts = {instance: [c.started for c in calls] for instance, calls in self._calls.items()}

    def at(self, instance: str, time: float) -> Usage | None:
        """Return the call, or None where there was none, or several at once."""
        before = bisect_right(self._starts.get(instance, ()), time)
        begun = self._calls[instance][:before] if before else []
        running = [call for call in begun if time <= call.started + call.duration]
        if running or not begun:
            return running[0] if len(running) == 1 else None
        latest = max(begun, key=lambda call: call.started + call.duration)
        return latest if time <= latest.started + latest.duration + _LATE else None

    def named(self, line: LogLine) -> LogLine:
        """Return a line with its request, as far as that can be told."""
        call = None if line.request else self.at(line.instance, line.time)
        return line if call is None else msgspec.structs.replace(line, request=call.request_id)


def find(request: str, logs: LogBook) -> list[tuple[Usage, list[LogLine]]]:
    """Return the latest calls of a request in their order, each with the lines printed meanwhile."""
    text = msgspec.json.encode(request)
    found = [
        (call, function)
        for function in logs.calls.functions()
        for call in logs.calls.holding(function, text)
        if call.request_id == request
    ]
    found = sorted(found, key=lambda each: each[0].started)[-_CALLS:]
    lines = {function: logs.tail(function, _LINES) for function in {function for _, function in found}}
    return [(call, [line for line in lines[function] if _during(call, line)]) for call, function in found]


def _during(call: Usage, line: LogLine) -> bool:
    if line.instance != call.instance or line.request not in ("", call.request_id):
        return False
    return 0 <= line.time - call.started <= call.duration + (_LATE_MARKED if line.request else _LATE)
