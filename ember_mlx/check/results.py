"""Results in a JSON lines file, each written as soon as it is available."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import bad_argument
from .jobs import Job

FORMAT = 1
DONE = ("works", "absent")
Result = dict[str, Any]


class Run(NamedTuple):
    """A machine with its versions, and its results by key."""

    machine: Result
    date: str
    results: dict[str, Result]


def read(path: Path) -> tuple[list[Run], int]:
    """The runs of a file, merged by machine and versions, and the number of unreadable lines.

    Raises:
        ValueError: not a file of results.
    """
    runs: list[Run] = []
    broken = 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            broken += 1
            continue
        if isinstance(entry, dict) and "machine" in entry:
            if entry.get("format") != FORMAT:
                raise bad_argument("check", "--json", f"be a file of format {FORMAT}", f"{path}, of format {entry.get('format')}")
            same = [run for run in runs if run.machine == entry["machine"]]
            runs = [run for run in runs if run not in same] + (same or [Run(entry["machine"], entry["date"], {})])
        elif isinstance(entry, dict) and "key" in entry and runs:
            runs[-1].results[entry["key"]] = entry
        else:
            broken += 1
    if broken and not runs:
        raise bad_argument("check", "--json", "be a file of the check's results", path)
    return runs, broken


class Log:
    """The results of this run, and of earlier runs on the same machine with the same versions.

    Args:
        path: the file; None: results are not stored.
        machine: the description from a worker.
    """

    def __init__(self, path: Path | None, machine: Result):
        self.path, self.machine, self.notes = path, machine, list[str]()
        self.results: dict[str, Result] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        runs, broken = read(path) if path.exists() else ([], 0)
        for run in runs:
            if run.machine == machine:
                self.results |= {key: result for key, result in run.results.items() if result.get("state") in DONE}
            else:
                self.notes.append(f"{path}: {len(run.results)} results of {_difference(run.machine, machine)} are ignored")
        if broken:
            self.notes.append(f"{path}: {broken} incomplete or unknown {'line is' if broken == 1 else 'lines are'} skipped")
        if self.results:
            self.notes.append(f"{path}: {len(self.results)} results are reused")
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self._write({"format": FORMAT, "machine": machine, "date": datetime.date.today().isoformat()}, "\n" if torn else "")

    def add(self, job: Job, result: Result) -> None:
        """Store a job's result."""
        self.results[job.key] = {"key": job.key, "stage": job.stage, "name": job.name, **_row(job), **result}
        if self.path is not None:
            self._write(self.results[job.key])

    def of(self, stage: str, jobs: Sequence[Job]) -> list[Result]:
        """The results of a stage, in the order of the jobs."""
        return [self.results[job.key] for job in jobs if job.stage == stage and job.key in self.results]

    def _write(self, entry: Result, before: str = "") -> None:
        assert self.path is not None
        with self.path.open("a") as file:
            file.write(f"{before}{json.dumps(entry)}\n")


def _row(job: Job) -> Result:
    return {"row": job.given["row"]} if "row" in job.given else {}


def _difference(other: Result, machine: Result) -> str:
    names = [name for name in machine if other.get(name) != machine[name]]
    return ", ".join(f"{name} {other.get(name)}" for name in names) or "another machine"
