"""Draws plots with matplotlib, which is an extra."""

import importlib.util
import io
import sys
from typing import TYPE_CHECKING, Literal

from benchmarks.report import Plot
from pilotlight.problems import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL = "Plots need matplotlib. Install it with: pip install 'pilotlight[plots]'"


def available() -> bool:
    """Tell whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def check(*, needed: bool) -> None:
    """Say how to install what plots need, where it is missing. Raises Problem if they are needed."""
    if available():
        return
    if needed:
        raise Problem("unavailable", INSTALL)
    print(INSTALL, file=sys.stderr)


def draw(plot: Plot, form: Literal["png", "svg"]) -> bytes:
    """Return a picture of a plot. Raises ImportError where matplotlib is not installed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = plot.name  # the same figures give the same file
    rows = len(plot.series[0].x) if plot.kind == "bars" else 10
    figure = Figure(figsize=(9, max(3.0, 1.2 + 0.33 * rows)), layout="constrained")
    axes = figure.subplots()
    (_bars if plot.kind == "bars" else _lines)(axes, plot)
    axes.set_title(plot.title)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    if plot.logarithmic:
        axes.set_xscale("log")
    axes.grid(axis="both" if plot.kind != "bars" else "x", alpha=0.3)
    if len(plot.series) > 1:
        axes.legend()
    picture = io.BytesIO()
    nothing = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(picture, format=form, dpi=120, metadata=nothing)
    return picture.getvalue()


def _bars(axes: "Axes", plot: Plot) -> None:
    names = [str(name) for name in plot.series[0].x]
    ends = [0.0] * len(names)
    for series in plot.series:
        axes.barh(names, series.y, left=ends, label=series.name)
        ends = [end + length for end, length in zip(ends, series.y, strict=True)]
    axes.invert_yaxis()


def _lines(axes: "Axes", plot: Plot) -> None:
    for series in plot.series:
        x = [float(value) for value in series.x]
        if plot.kind == "steps":
            axes.step(x, series.y, where="post", label=series.name)
        else:
            axes.plot(x, series.y, marker="o", label=series.name)
