"""The report of a run: tables in the terminal, and a figure and a page to share."""

import base64
import html
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from contest import WORKS, Outcome
from pictures import draw
from works import HEADINGS, OURS, Work

Outcomes = dict[str, tuple[Work, dict[str, Outcome]]]
HEADER = ["", *(text for heading in HEADINGS.values() for text in (heading, "quartiles", "x ours")), "peak MiB", "error"]
NOTES = [
    "Medians of all runs and their quartiles in ms; contenders run alternately in separate processes, in a different order each round.",
    "x ours: time relative to ember_mlx, the median of the rounds' ratios.",
    "Before timing, each contender's outputs and gradients are compared with ours for the same weights; error: the largest "
    "difference over the largest value. WRONG: they differ. FAILED: it raised an error, or gave NaN.",
    "Peak: additional memory of a forward and backward run, if the library reports it.",
]


class Report:
    """The results of a run.

    Args:
        machine: the result of `measure.environment`.
        blas: description of NumPy's BLAS.
        warnings: reasons why times may be too long.
        command: the command.
    """

    def __init__(self, machine: dict[str, Any], blas: str, warnings: list[str], command: str):
        self.machine, self.blas, self.warnings, self.command = machine, blas, warnings, command
        self.outcomes: Outcomes = {}
        self.left_out: dict[str, list[str]] = {}

    def told(self) -> list[str]:
        """Machine and method of the measurements."""
        versions = ", ".join(f"{name} {version}" for name, version in self.machine["versions"].items() if version)
        devices = {name: outcome.device for _, found in self.outcomes.values() for name, outcome in found.items() if outcome.state == WORKS}
        lines = [
            f"{self.machine['cpu']}, {self.machine['cores']} cores, {self.machine['system']}, Python {self.machine['python']}",
            versions,
            f"NumPy's BLAS: {self.blas}",
            f"{self.machine['date']}, {self.command}",
            "ran on: " + ", ".join(f"{name}: {device}" for name, device in devices.items()),
        ]
        lines += [f"WARNING: {line}" for line in self.warnings]
        return lines + [f"left out: {name} ({', '.join(lacking)} not installed)" for name, lacking in self.left_out.items()]


class Table(NamedTuple):
    """A work in both directions."""

    title: str
    rows: list[list[str]]
    failures: list[str]
    pictured: bool


def tables(outcomes: Outcomes) -> Iterator[Table]:
    """One table per layer and size."""
    groups: dict[str, dict[str, dict[str, Outcome]]] = {}
    for work, found in outcomes.values():
        groups.setdefault(work.sized, {})[work.direction] = found
    pictured = {work.sized: work.pictured for work, _ in outcomes.values()}
    for sized, by_direction in groups.items():
        names = list(dict.fromkeys(name for found in by_direction.values() for name in found))
        failures = [
            f"{name}, {HEADINGS[direction]}: {found[name].state}: {found[name].why}"
            for direction, found in by_direction.items()
            for name in found
            if found[name].state != WORKS
        ]
        yield Table(sized, [_row(name, by_direction) for name in names], failures, pictured[sized])


def ratio(outcome: Outcome, ours: Outcome) -> float | None:
    """The time relative to ours."""
    pairs = list(zip(outcome.medians, ours.medians, strict=False))  # a contender that failed late has fewer rounds
    return statistics.median(a / b for a, b in pairs) if pairs else None


def _row(name: str, by_direction: dict[str, dict[str, Outcome]]) -> list[str]:
    row = [name]
    for direction in HEADINGS:
        found = by_direction.get(direction, {})
        outcome = found.get(name)
        if outcome is None or outcome.state != WORKS:
            row += ["" if outcome is None else outcome.state, "", ""]
            continue
        times = [1e3 * t for t in outcome.times]
        low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        factor = ratio(outcome, found[OURS])
        row += [_digits(statistics.median(times)), f"{_digits(low)} - {_digits(high)}", "" if factor is None else f"{factor:.2f}"]
    measured = [found[name] for found in by_direction.values() if name in found]
    memory = by_direction.get("both", {}).get(name, Outcome("")).memory
    errors = [outcome.error for outcome in measured if outcome.error is not None]
    return [*row, f"{memory[0] / 2**20:.1f}" if memory else "", f"{max(errors):.0e}" if errors and name != OURS else ""]


def _digits(milliseconds: float) -> str:
    """Three significant digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"


def print_report(report: Report, write: Callable[[str], None]) -> None:
    """Print the tables, except those of the figure's sizes, and all failures."""
    for table in tables(report.outcomes):
        if table.pictured and not table.failures:
            continue
        widths = [max(len(row[k]) for row in [HEADER, *table.rows]) for k in range(len(HEADER))]
        write(f"\n{table.title}")
        for row in [HEADER, ["-" * w for w in widths], *table.rows]:
            write(
                "| "
                + " | ".join(cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
                + " |"
            )
        for line in table.failures:
            write(line)
    write("")
    for line in [*NOTES, "", *report.told(), ""]:
        write(line)


def write_page(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write the figure, and a self-contained page that includes it."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / "benchmarks.png", folder / "benchmarks.html"
    draw(report.outcomes, ratio, picture, f"{report.machine['cpu']}, {report.machine['cores']} cores, {report.machine['date']}")
    encoded = base64.b64encode(picture.read_bytes()).decode()
    parts = [_paragraph(line) for line in report.told()]
    parts.append(f'<img alt="The figures below as lines and bars" src="data:image/png;base64,{encoded}">')
    for table in tables(report.outcomes):
        parts += [f"<h2>{html.escape(table.title)}</h2>", _html_table(table.rows), *(_paragraph(line) for line in table.failures)]
    page.write_text(PAGE.format(body="\n".join([*parts, *(_paragraph(line) for line in NOTES)])))
    return picture, page


def _paragraph(text: str) -> str:
    kind = ' class="warning"' if text.startswith("WARNING") or "WRONG:" in text or "FAILED:" in text else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def _html_table(rows: list[list[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in HEADER) + "</tr>"]
    for row in rows:
        own = ' class="ours"' if row[0] == OURS else ""
        lines.append(f"<tr{own}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ember_mlx: benchmarks</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }}
p {{ margin: 0.2em 0; }}
img {{ width: 100%; margin: 1em 0; }}
h2 {{ font-size: 1.1em; margin: 1.5em 0 0.3em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.2em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
.ours {{ font-weight: bold; }}
.warning {{ color: #b00020; }}
</style>
</head>
<body>
<h1>ember_mlx: benchmarks</h1>
{body}
</body>
</html>
"""
