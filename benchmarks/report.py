"""python benchmarks/report.py FILE...: results of `python -m ember_mlx --check --json FILE` as the tables of docs/benchmarks.md.

Writes a section for each machine and version between the two marks of the document, whose other parts are unchanged. With --print the
tables are printed, and no file is changed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ember_mlx.check.results import Run, read

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines files")
    parser.add_argument("--print", action="store_true", help="print to the terminal only")
    options = parser.parse_args(arguments)
    try:
        runs = [(path, run) for path in options.files for run in read(path)[0] if run.results]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not runs:
        parser.error("there are no results in these files")
    text = "\n".join(line for path, run in runs for line in section(path, run))
    if options.print:
        print(text)
        return 0
    before, _, rest = DOCUMENT.read_text().partition(MARKS[0])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    print(DOCUMENT)
    return 0


def section(path: Path, run: Run) -> Iterator[str]:
    """A machine's tables."""
    told = run.machine
    yield f"### {told.get('device_name') or told.get('architecture') or 'a machine'}, {run.date}"
    yield ""
    versions = f"ember_mlx {told['ember_mlx']}, mlx {told['mlx']}, numpy {told['numpy']}, Python {told['python']}, {told['system']}"
    yield f"{versions}; kernels: {told['kernels']}{', TF32' if told.get('tf32') else ''}. From {path.name}."
    stages: dict[str, list[Result]] = {}
    for result in run.results.values():
        stages.setdefault(result["stage"], []).append(result)
    yield from _table("Times", ("", "forward", "estimate", "forward + backward", "estimate"), list(_times(stages)))
    yield from _table("Memory of a training step at its peak", ("", "MiB", "arrays of (B, T, H)"), list(_memory(stages)))
    yield from _table("Errors against float64", ("", "outputs", "gradients", ""), list(_errors(stages)))
    yield from _table("The best layouts", ("", "forward", "forward + backward"), list(_layouts(stages)))
    failed = [result for result in run.results.values() if result["state"] not in ("works", "absent")]
    yield from _table("What failed", ("", "", "why"), [(r["key"], r["state"], str(r.get("why", ""))[:200]) for r in failed])
    yield ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"**{title}**", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}")
        yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _times(stages: dict[str, list[Result]]) -> Iterator[Sequence[str]]:
    """Our rows, each followed by its peers with their times relative to ours."""
    results = [result for stage in ("times", "peers", "sizes") for result in stages.get(stage, []) if "forward" in result]
    own = [result for result in results if result["name"].rpartition(" T")[2].isdigit()]
    for ours in own:
        estimates = [f"{ours[f'{name}_estimate']:.2f} ms" if ours.get(f"{name}_estimate") else "" for name in ("forward", "both")]
        yield f"**{ours['name']}**", f"{ours['forward']:.2f} ms", estimates[0], f"{ours['both']:.2f} ms", estimates[1]
        for peer in results:
            if peer["name"].startswith(f"{ours['name']}, "):
                ratios = [f"{peer[name]:.2f} ms ({peer[name] / ours[name]:.1f} x)" for name in ("forward", "both")]
                yield peer["name"].removeprefix(f"{ours['name']}, "), ratios[0], "", ratios[1], ""


def _memory(stages: dict[str, list[Result]]) -> Iterator[Sequence[str]]:
    for result in stages.get("memory", []):
        if "peak" in result:
            yield result["name"], f"{result['peak'] / 2**20:.1f}", f"{result['arrays']:.1f}"


def _errors(stages: dict[str, list[Result]]) -> Iterator[Sequence[str]]:
    for result in stages.get("errors", []):
        if "outputs" in result:
            wrong = "" if result["state"] == "works" else result["state"]
            yield result["name"], f"{result['outputs']:.1e}", f"{result['gradients']:.1e}", wrong


def _layouts(stages: dict[str, list[Result]]) -> Iterator[Sequence[str]]:
    """The three fastest layouts of each row, and the table's choice."""
    rows: dict[str, list[Result]] = {}
    for result in stages.get("tuning", []):
        if "both" in result:
            rows.setdefault(result["row"], []).append(result)
    chosen = {result["name"]: result for result in stages.get("times", [])}
    for name, found in rows.items():
        for result in [chosen.get(name), *sorted(found, key=lambda one: float(one["both"]))[:3]]:
            if result is not None and "both" in result:
                yield result["name"], f"{result['forward']:.2f} ms", f"{result['both']:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())
