"""Keep-alive policies: how long, and which layer of, an idle function is held, and when it is pre-warmed.

Pure: no clock and no I/O. `base.py` is the seam; each of the others is one policy. `docs/KEEP_ALIVE.md`
compares them, with `pilotlight bench keep-alive`, which replays traces through these very objects.
"""

from function_service.policies.base import Decision, History, Layer, Policy, Step
from function_service.policies.ember import Ember
from function_service.policies.fixed import Fixed
from function_service.policies.greedy_dual import GreedyDual
from function_service.policies.histogram import HybridHistogram

NAMES = ("ember", "fixed", "histogram", "greedy-dual")

__all__ = [
    "NAMES",
    "Decision",
    "Ember",
    "Fixed",
    "GreedyDual",
    "History",
    "HybridHistogram",
    "Layer",
    "Policy",
    "Step",
    "choose",
]


def choose(name: str, budget: float, thrift: float) -> Policy:
    """Return a new policy by its name, one of NAMES.

    `budget` in MB bounds "greedy-dual", `thrift` says what "ember" may waste, over ten minutes for each.
    """
    match name:
        case "ember":
            return Ember(thrift=thrift)
        case "fixed":
            return Fixed()
        case "histogram":
            return HybridHistogram()
        case "greedy-dual":
            return GreedyDual(budget)
    raise ValueError(f"{name!r} is not a keep-alive policy; there are {', '.join(NAMES)}")
