"""What changed between two runs, beyond noise. Pure."""

from dataclasses import dataclass

from benchmarks.report import Figure, Report


@dataclass(frozen=True)
class Change:
    """One figure in both runs; `factor` is that by which it became worse (above 1) or better (below 1)."""

    name: str
    before: str
    after: str
    factor: float
    beyond_noise: bool
    is_baseline: bool  # then the machine has changed, or how busy it is

    @property
    def verdict(self) -> str:
        """Say it in words."""
        if not self.beyond_noise:
            return "the same within noise"
        words = f"{self.factor:.2f} times worse" if self.factor > 1 else f"{1 / self.factor:.2f} times better"
        return f"the machine: {words}" if self.is_baseline else words


def changes(former: Report, latter: Report) -> list[Change]:
    """Compare the figures that both have.

    A figure with a baseline is compared by its ratio to it, so that a quicker machine is no change.
    It has changed where the confidence intervals do not overlap.
    """
    known = {each.name: each for each in former.figures}
    baselines = {each.baseline for each in latter.figures}
    return [
        _change(known[each.name], each, is_baseline=each.name in baselines)
        for each in latter.figures
        if each.name in known
    ]


def _change(before: Figure, after: Figure, *, is_baseline: bool) -> Change:
    if before.ratio is not None and after.ratio is not None and before.baseline == after.baseline:
        old, new = before.ratio, after.ratio
        shown = [f"{each.value:.3g} of {before.baseline}" for each in (old, new)]
    else:
        old, new = before.median, after.median
        shown = [f"{each.value:.4g} {before.unit}" for each in (old, new)]
    factor = new.value / old.value if old.value else float("inf")
    if after.better == "higher":
        factor = 1 / factor if factor else float("inf")
    return Change(after.name, shown[0], shown[1], factor, not old.overlaps(new), is_baseline)


def missing(former: Report, latter: Report) -> list[str]:
    """Name the figures that only one of the runs has."""
    first, second = {each.name for each in former.figures}, {each.name for each in latter.figures}
    return sorted(first ^ second)
