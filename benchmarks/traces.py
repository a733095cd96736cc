"""Traces of invocations: read from CSV, or generated after what was published of a large provider.

The distributions of the generator are those that Shahrad et al. ("Serverless in the Wild", USENIX ATC 2020)
fitted to two weeks of Azure Functions: the mix of triggers (their figure 2), calls per day (figure 5: 45 % of
the applications are called at most once an hour, 81 % at most once a minute), durations (log-normal, figure
7) and memory (Burr, figure 8). How calls are spread over time is ours, by trigger: see `_times`.
"""

from __future__ import annotations

import csv
import math
import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86400.0
_MEMORY = 170.0  # MB, where a trace does not say: the median of the paper
_BUSIEST = 5_000.0  # calls a day; what is called more often is always warm, and costs only our time


@dataclass(frozen=True)
class Trace:
    """Calls in the order of time. Functions are numbered; `names` and `memory` are by number."""

    times: array[float]  # seconds since the beginning
    functions: array[int]
    durations: array[float]  # seconds
    names: list[str]
    memory: list[float]  # MB
    length: float  # seconds

    def __len__(self) -> int:
        return len(self.times)


def _trace(
    calls: list[tuple[float, int, float]], names: list[str], memory: list[float], length: float
) -> Trace:
    calls.sort()
    times, functions, durations = zip(*calls, strict=True) if calls else ((), (), ())
    return Trace(array("d", times), array("l", functions), array("d", durations), names, memory, length)


# Files


def read_plain(path: Path) -> Trace:
    """Read `time,function,duration,memory`: seconds, any name, seconds, MB; the last two may be missing.

    Raises ValueError, naming the line.
    """
    calls: list[tuple[float, int, float]] = []
    numbers: dict[str, int] = {}
    memory: list[float] = []
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"time", "function"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: the first line must name the columns time,function,duration,memory")
        for row in rows:
            try:
                number = numbers.setdefault(row["function"], len(numbers))
                calls.append((float(row["time"]), number, float(row.get("duration") or 0)))
                size = float(row.get("memory") or _MEMORY)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            if number == len(memory):
                memory.append(size)
            memory[number] = max(memory[number], size)
    start = min((call[0] for call in calls), default=0.0)
    calls = [(time - start, function, duration) for time, function, duration in calls]
    return _trace(calls, list(numbers), memory, max((call[0] for call in calls), default=0.0))


def read_azure(
    days: list[Path], durations: Path | None = None, memory: Path | None = None, *, seed: int = 0
) -> Trace:
    """Read days in the format of the Azure Functions trace of 2019, one file a day, in order.

    The files count calls by minute; within its minute each call gets a random place. That is the worst case
    for policies that rely on exact times. `durations` gives an average by function in ms, `memory` by
    application in MB. Raises ValueError for a file that is something else.
    """
    lasting = _column(durations, "HashFunction", "Average", 0.001)
    sizes = _column(memory, "HashApp", "AverageAllocatedMb", 1.0)
    dice = random.Random(seed)
    numbers: dict[str, int] = {}
    found: list[float] = []
    calls: list[tuple[float, int, float]] = []
    length = 0.0
    for day, path in enumerate(days):
        with path.open(newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            # Samples of that trace that others publish say minute_1 or 1_minute
            header = [name.removeprefix("minute_").removesuffix("_minute") for name in header]
            if not {"HashApp", "HashFunction", "1"} <= set(header):
                expected = "HashOwner,HashApp,HashFunction,Trigger,1,2,…"
                raise ValueError(f"{path}: the first line must be {expected}")
            length = day * DAY + 60.0 * (len(header) - header.index("1"))
            first, place, app = header.index("1"), header.index("HashFunction"), header.index("HashApp")
            for row in rows:
                name = f"{row[app]}/{row[place]}"
                number = numbers.setdefault(name, len(numbers))
                if number == len(found):
                    found.append(sizes.get(row[app], _MEMORY))
                duration = lasting.get(row[place], 0.0)
                for minute, text in enumerate(row[first:]):
                    if text in {"", "0"}:
                        continue
                    begin = day * DAY + minute * 60.0
                    moments = (begin + 60.0 * dice.random() for _ in range(int(text)))
                    calls.extend((moment, number, duration) for moment in moments)
    return _trace(calls, list(numbers), found, length)


def _column(path: Path | None, key: str, value: str, scale: float) -> dict[str, float]:
    if path is None:
        return {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {key, value} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: the first line must name the columns {key} and {value}")
        return {row[key]: float(row[value]) * scale for row in rows if row[value]}


def write_plain(trace: Trace, path: Path) -> None:
    """Write the plain form, so that a generated trace can be given to other simulators."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("time", "function", "duration", "memory"))
        for time, function, duration in zip(trace.times, trace.functions, trace.durations, strict=True):
            rows.writerow(
                (f"{time:.3f}", trace.names[function], f"{duration:.4f}", f"{trace.memory[function]:.1f}")
            )


# The generator

_TRIGGERS = {
    "http": 0.55,
    "timer": 0.156,
    "queue": 0.202,
    "chain": 0.069,
    "other": 0.023,
}  # share of functions
_PERIODS = ((60.0, 0.1), (300.0, 0.25), (900.0, 0.2), (1800.0, 0.1), (3600.0, 0.2), (DAY, 0.15))  # of timers


def generate(functions: int, days: float, seed: int) -> Trace:
    """Make a trace. The same arguments give the same trace."""
    dice = random.Random(seed)
    length = days * DAY
    triggers = dice.choices(list(_TRIGGERS), list(_TRIGGERS.values()), k=functions)
    calls: list[tuple[float, int, float]] = []
    names, memory = [], []
    former: list[float] = []
    for number, trigger in enumerate(triggers):
        names.append(f"{trigger}-{number}")
        memory.append(_burr(dice))
        median = min(60.0, dice.lognormvariate(-0.38, 2.36))
        times = (
            _chained(dice, former, length) if trigger == "chain" and former else _times(dice, trigger, length)
        )
        calls += ((time, number, min(300.0, median * dice.lognormvariate(0, 0.3))) for time in times)
        former = times
    return _trace(calls, names, memory, length)


def _burr(dice: random.Random) -> float:
    """Return MB: a Burr distribution with c = 11.652, k = 0.221, scale 107.083."""
    burr: float = ((1 - dice.random()) ** (-1 / 0.221) - 1) ** (1 / 11.652)
    return min(1536.0, 107.083 * burr)


def _times(dice: random.Random, trigger: str, length: float) -> list[float]:
    """Return when one function is called."""
    rate = min(_BUSIEST, dice.lognormvariate(3.69, 4.08)) / DAY  # of the fitted calls per day
    if trigger == "timer":
        return list(_timer(dice, length))
    if trigger == "queue":  # a batch of messages every now and then, worked off one by one
        size = max(1.0, dice.lognormvariate(2.0, 1.0))
        return list(_bursts(dice, rate / size, size, dice.lognormvariate(0.0, 1.0), 0.3, length))
    if trigger == "http":  # sessions of people: some requests, with pauses; fewer at night
        size = max(1.0, dice.lognormvariate(1.2, 1.0))
        return list(
            _bursts(dice, rate / size, size, dice.lognormvariate(2.5, 1.0), dice.uniform(0.3, 0.95), length)
        )
    return list(_bursts(dice, rate, 1.0, 1.0, 0.3, length))


def _timer(dice: random.Random, length: float) -> Iterator[float]:
    """Yield the times of a timer: every so often, or, one in five, on the hour within working hours."""
    if dice.random() < 0.2:
        phase, opens, closes = dice.choice((0.0, 600.0, 1800.0)), dice.randint(6, 9), dice.randint(16, 20)
        period, hours = 3600.0, range(opens, closes)
    else:
        period = dice.choices([p for p, _ in _PERIODS], [w for _, w in _PERIODS])[0]
        phase, hours = dice.random() * period, range(24)
    time = phase
    while time < length:
        if int(time % DAY // 3600) in hours:
            yield time + abs(dice.gauss(0, 0.2))
        time += period


def _bursts(
    dice: random.Random, rate: float, size: float, pause: float, swing: float, length: float
) -> Iterator[float]:
    """Yield bursts that come `rate` times a second, more by day than by night, of about `size` calls."""
    peak = dice.gauss(14, 3) * 3600
    begin = 0.0
    while (begin := begin + dice.expovariate(rate * (1 + swing))) < length:
        now = 1 + swing * math.cos(2 * math.pi * (begin - peak) / DAY)
        if dice.random() * (1 + swing) > now:
            continue  # thinned out: the rate varies over the day
        time = begin
        while time < length:
            yield time
            if dice.random() < 1 / size:
                break
            time += dice.expovariate(1 / pause)


def _chained(dice: random.Random, former: list[float], length: float) -> list[float]:
    """Return calls that follow on those of another function, most of the time."""
    share, delay = dice.uniform(0.3, 1.0), dice.lognormvariate(1.0, 1.5)
    times = (time + delay * dice.lognormvariate(0, 0.3) for time in former if dice.random() < share)
    return [time for time in times if time < length]
