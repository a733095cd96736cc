"""Shows a report: as a table on a console, as Markdown, and as one HTML page that needs nothing else."""

import html as escaping
from collections.abc import Sequence

from benchmarks import compare, machine, plots
from benchmarks.report import Figure, Report
from benchmarks.stats import Estimate
from cli import output

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}"
)
_CHANGES = ("figure", "before", "now", "change")


def console(figures: Sequence[Figure]) -> str:
    """Lay figures out as a table."""
    heads, rows = _table(figures)
    return output.table([head.upper() for head in heads], rows)


def against(former: Report, latter: Report) -> str:
    """Lay out what changed."""
    lines = [
        output.table([head.upper() for head in _CHANGES], _changes(former, latter)),
        *_caveats(former, latter),
    ]
    return "\n".join(lines)


def markdown(report: Report, former: Report | None = None) -> str:
    """Write a report as Markdown."""
    lines = [f"`{report.command}`, {report.started}, {report.seconds:.0f} s", ""]
    lines += [f"- {line}" for line in _circumstances(report)]
    lines += ["", *_markdown_table(*_table(report.figures))]
    for note in report.notes:
        lines += ["", note]
    if former is not None:
        lines += ["", f"Since {former.started}:", "", *_markdown_table(_CHANGES, _changes(former, report))]
    return "\n".join(lines) + "\n"


def html(report: Report, former: Report | None = None) -> str:
    """Write a report as one page, with its plots where they can be drawn."""
    title = f"pilotlight bench {report.benchmark}"
    parts = [f"<h1>{escaping.escape(title)}</h1><p><code>{escaping.escape(report.command)}</code></p><ul>"]
    parts += [f"<li>{escaping.escape(line)}</li>" for line in (report.started, *_circumstances(report))]
    parts.append("</ul>" + _html_table(*_table(report.figures)))
    parts += [f"<p>{escaping.escape(note)}</p>" for note in report.notes]
    if former is not None:
        parts.append(f"<h2>Since {former.started}</h2>" + _html_table(_CHANGES, _changes(former, report)))
    if plots.available():
        for plot in report.plots:
            picture = plots.draw(plot, "svg").decode()
            parts.append(f"<figure>{picture[picture.index('<svg') :]}</figure>")
    elif report.plots:
        parts.append(f"<p>{escaping.escape(plots.INSTALL)}</p>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escaping.escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _circumstances(report: Report) -> list[str]:
    after = ", ".join(f"{value:.2f}" for value in report.load_after)
    quick = (
        ["A quick form: it shows that the bench works, and its figures say little"] if report.quick else []
    )
    return [*machine.describe(report.machine), f"load after the run {after}", *quick]


def _table(figures: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows; a column for each part that a figure has."""
    parts = list(dict.fromkeys(name for each in figures for name in each.parts))
    heads = [
        "what",
        "n",
        "median",
        "95 % ci",
        "p95",
        "p99",
        "unit",
        *parts,
        "of baseline",
        "95 % ci",
        "baseline",
    ]
    rows = []
    for each in figures:
        own = [_number(each.parts[name]) if name in each.parts else "-" for name in parts]
        ratio = [_number(each.ratio.value), _interval(each.ratio)] if each.ratio else ["-", "-"]
        spread = [_interval(each.median), _number(each.p95), _number(each.p99)]
        rows.append(
            [
                *(each.name, str(each.count), _number(each.median.value), *spread, each.unit),
                *(*own, *ratio, each.baseline or "-"),
            ]
        )
    return heads, rows


def _changes(former: Report, latter: Report) -> list[list[str]]:
    return [[each.name, each.before, each.after, each.verdict] for each in compare.changes(former, latter)]


def _caveats(former: Report, latter: Report) -> list[str]:
    lines = []
    if former.machine.processor != latter.machine.processor or former.machine.kernel != latter.machine.kernel:
        lines.append("That run was on another machine or kernel; only ratios to a baseline compare.")
    if former.quick or latter.quick:
        lines.append("One of the runs was a quick one, whose figures say little.")
    if missing := compare.missing(former, latter):
        lines.append(f"Only one of the runs has: {', '.join(missing)}.")
    return ["", *lines] if lines else []


def _number(value: float) -> str:
    """Write a number with three digits that count."""
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate.low)}–{_number(estimate.high)}"  # noqa: RUF001  a range


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in heads[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escaping.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{row('th', heads)}{''.join(row('td', cells) for cells in rows)}</table>"
