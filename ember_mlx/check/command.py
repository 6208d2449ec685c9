"""The check command."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import bad_argument
from . import LIMIT
from .jobs import QUICK, STAGES, Job, cells_of, chosen
from .report import described, failures, lines_of
from .results import DONE, Log
from .workers import Worker

LEAST = 5.0  # seconds that must remain to start another job
SANITIZER = "compute-sanitizer"


class Options(NamedTuple):
    """The command's options.

    Args:
        json: file of results, of this and earlier runs, or None.
        budget: total time in seconds, or None.
        quick: whether to run only the stages `QUICK`.
        only: cells to check; empty: all.
        limit: time limit per job in seconds.
        device: as for a worker.
    """

    json: Path | None = None
    budget: float | None = None
    quick: bool = False
    only: tuple[str, ...] = ()
    limit: float = LIMIT
    device: str | None = None


def check(options: Options) -> int:
    """Run the jobs, and print the table in any case. Exit status: 0; 1 if a job failed; 2 without a GPU; 130 after a signal."""
    end = None if options.budget is None else time.monotonic() + options.budget
    try:
        worker = Worker(options.device)
    except RuntimeError as error:
        print(f"\n{error}")
        return 1
    if worker.machine["kernels"] is None:
        worker.end()
        print("\nno GPU is MLX's default device here: no kernel was checked")
        return 2
    if options.only and (unknown := sorted(set(options.only) - set(cells_of(worker.jobs)))):
        worker.end()
        raise bad_argument("check", "--only", f"name cells among {', '.join(cells_of(worker.jobs))}", unknown[0])
    jobs = chosen(worker.jobs, QUICK if options.quick else tuple(STAGES), options.only)
    log = Log(options.json, worker.machine)
    print("\n".join(["", *log.notes]))
    waiting = [job for job in jobs if job.key not in log.results]
    stopped = _run_all(worker, waiting, log, options, end)
    print("\n".join(lines_of(log, jobs)), flush=True)
    return 130 if stopped else 1 if failures(log, jobs) else 0


def _run_all(worker: Worker, jobs: Sequence[Job], log: Log, options: Options, end: float | None) -> bool:
    """Run the jobs, with a new worker after each failure; returns whether a signal ended the run."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for job in jobs:
            left = options.limit if end is None else end - time.monotonic()
            if left < min(LEAST, options.limit):
                print(f"the budget of {options.budget:g} s is spent", flush=True)
                break
            limit = min(options.limit, left)
            result = _sanitized(job, options, limit) if "tool" in job.given else worker.run(job, limit)
            if "tool" not in job.given and result["state"] not in (*DONE, "WRONG"):
                worker.end()
                worker = Worker(options.device)
            log.add(job, result)
            print(f"{job.key}: {described(result)}", flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return True
    except RuntimeError as error:
        print(f"{error}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        worker.process.kill()
        worker.process.wait()
    return False


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _sanitized(job: Job, options: Options, limit: float) -> dict[str, Any]:
    """Run a job in a separate worker under compute-sanitizer."""
    if shutil.which(SANITIZER) is None:
        return {"state": "absent"}
    command = [SANITIZER, "--tool", job.given["tool"], "--error-exitcode", "9", sys.executable, "-m", "ember_mlx.check.worker"]
    command += ["--device", options.device] if options.device else []
    try:
        text = json.dumps([job.stage, job.given]) + "\n"
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"state": "HUNG", "why": f"no result after {limit:.0f} s"}
    if done.returncode:
        found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("=========")]
        return {"state": "FAILED", "why": f"exit status {done.returncode}: {' '.join(found[:12]) or done.stderr[-300:]}"}
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    result: dict[str, Any] = answers[-1]
    return result
