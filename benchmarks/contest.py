"""A work's contenders, each in a separate process: compared with ours, then timed alternately."""

import contextlib
import importlib.util
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import timed
from works import Work

TOLERANCES = {("float32", "cpu"): 1e-4, ("float32", "gpu"): 2e-3, ("bfloat16", "cpu"): 5e-2, ("bfloat16", "gpu"): 5e-2}
"""Largest allowed difference from ours relative to the largest value of the array, in outputs and gradients; GPUs approximate tanh and exp,
and sum in varying order."""
SMALLEST_SCALE = 1e-3  # fraction of the largest gradient: the minimum scale for the errors of smaller gradients
PATIENCE = 300.0  # seconds to wait for an answer, in case a kernel hangs
LEAST_RUNS = 3  # minimum runs per round, unless they are long
WORKS, FAILED, WRONG = "works", "FAILED", "WRONG"


class Effort(NamedTuple):
    """The duration of measurements.

    Args:
        rounds: number of rounds, in each of which every contender runs once.
        seconds: duration of a contender's runs in a round, plus a quarter for the warm-up; at least one run and a warm-up.
        most: seconds per work; after that no further round starts, but there are at least two.
    """

    rounds: int
    seconds: float
    most: float


class Outcome(NamedTuple):
    """The result of a contender.

    Args:
        state: WORKS, FAILED or WRONG.
        why: the reason if it is not WORKS.
        times: seconds of each run, all rounds.
        medians: median seconds of each round.
        error: the largest difference from ours over the largest value.
        memory: peak bytes, if known, and their source.
        device: the device that it ran on.
    """

    state: str
    why: str = ""
    times: tuple[float, ...] = ()
    medians: tuple[float, ...] = ()
    error: float | None = None
    memory: tuple[int, str] | None = None
    device: str = "cpu"


class Worker:
    """A contender's process, suspended while idle, since its waiting threads would slow down the others."""

    def __init__(self, module: str):
        command = [sys.executable, __file__, module]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if p)
        }
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment, bufsize=1
        )

    def ask(self, **question: Any) -> Any:
        """The answer to a question.

        Raises:
            RuntimeError: the process failed, died or did not answer in time.
        """
        try:
            self.process.send_signal(signal.SIGCONT)
            print(json.dumps(question), file=self.process.stdin, flush=True)
        except OSError:
            raise RuntimeError(self._death()) from None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else None
        if line is None:
            self.close()
            raise RuntimeError(f"no answer within {PATIENCE:.0f} s")
        if not line:
            raise RuntimeError(self._death())
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer["answer"]

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process, which may be suspended."""
        if self.lives:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):  # unsent data of a process that has ended
                file.close()

    def _death(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        last = [line for line in self.errors.read().splitlines() if line.strip()][-1:]
        self.close()
        return f"its process ended with {code}{': ' if last else ''}{''.join(last)}"


class Workers:
    """One process per contender, started at its first question and restarted if it died."""

    def __init__(self, module: str = "contenders"):
        self.module = module
        self.running: dict[str, Worker] = {}

    def __getitem__(self, contender: str) -> Worker:
        if contender not in self.running or not self.running[contender].lives:
            self.running[contender] = Worker(self.module)
        return self.running[contender]

    def close(self) -> None:
        for worker in self.running.values():
            worker.close()


def missing(contender: str, packages: dict[str, tuple[str, ...]]) -> list[str]:
    """The packages that a contender needs and that are not installed."""
    return [name for name in packages.get(contender.split(" ")[0], ()) if not importlib.util.find_spec(name)]


def measured(work: Work, key: list[Any], names: Iterable[str], workers: Workers, effort: Effort) -> dict[str, Outcome]:
    """Measure every contender of a work: first compare its results with ours, then time the correct ones alternately.

    The order changes in every round, since each run affects caches and clocks for the next.

    Args:
        work: the work.
        key: the work's key in a worker process.
        names: names of the contenders, ours first.
        workers: the processes.
        effort: the duration of measurements.
    """
    outcomes: dict[str, Outcome] = {}
    reference: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / "results.npz"
            try:
                told = workers[name].ask(do="prepare", key=key, name=name, path=str(path))
            except RuntimeError as error:
                outcomes[name] = Outcome(FAILED, str(error))
                continue
            with np.load(path) as stored:
                results = dict(stored)
            reference = reference or results
            outcomes[name] = judged(results, reference, work.dtype, told["device"])
    todo, shuffled = [name for name, outcome in outcomes.items() if outcome.state == WORKS], random.Random(0)
    times: dict[str, list[list[float]]] = {name: [] for name in todo}
    start = time.perf_counter()
    for n in range(effort.rounds):
        for name in shuffled.sample(todo, len(todo)):
            if outcomes[name].state != WORKS:
                continue
            try:
                times[name].append(workers[name].ask(do="time", name=name, seconds=effort.seconds))
            except RuntimeError as error:
                outcomes[name] = outcomes[name]._replace(state=FAILED, why=str(error))
        if n >= 1 and time.perf_counter() > start + effort.most:
            break
    for name in todo:
        if outcomes[name].state == WORKS:
            runs, medians = [t / 1e3 for turn in times[name] for t in turn], [statistics.median(turn) / 1e3 for turn in times[name]]
            with contextlib.suppress(RuntimeError):
                peak = workers[name].ask(do="memory", name=name)
                outcomes[name] = outcomes[name]._replace(memory=tuple(peak) if peak else None)
            outcomes[name] = outcomes[name]._replace(times=tuple(runs), medians=tuple(medians))
    return outcomes


def judged(results: dict[str, np.ndarray], reference: dict[str, np.ndarray], dtype: str, device: str) -> Outcome:
    """Whether a contender's outputs and gradients agree with ours."""
    for name, a in results.items():
        if not np.isfinite(a).all():
            return Outcome(FAILED, f"NaN or infinity in {described(name)}", device=device)
    errors = dict(differences(results, reference))
    worst = max(errors, key=lambda name: errors[name])
    tolerance = TOLERANCES[dtype, "cpu" if device == "cpu" else "gpu"]
    if errors[worst] > tolerance:
        why = f"{described(worst)} is off by {errors[worst]:.1e} of the largest value, more than {tolerance:.0e}"
        return Outcome(WRONG, why, error=errors[worst], device=device)
    return Outcome(WORKS, error=errors[worst], device=device)


def differences(results: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    gradients = [np.abs(a).max() for name, a in reference.items() if name != "y"]
    floor = SMALLEST_SCALE * max(gradients, default=0)
    for name, a in results.items():
        theirs = reference.get(name)
        if theirs is None or theirs.shape != a.shape:
            yield name, float("inf")
        else:
            scale = max(np.abs(theirs).max(), floor if name != "y" else 0, np.finfo(np.float32).tiny)
            yield name, float(np.abs(a - theirs).max() / scale)


def described(name: str) -> str:
    return "the output" if name == "y" else f"the gradient of {name}"


# in a worker process


def serve(module: str) -> None:
    """Answer questions, one line of JSON each, with the module's own `answered` if it has one; a failure does not end the process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to stderr
    prepared: dict[str, Any] = {}
    contenders = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            contenders = contenders or importlib.import_module(module)
            answer = {"answer": getattr(contenders, "answered", partial(answered, contenders))(prepared, **question)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


def answered(contenders: Any, prepared: dict[str, Any], do: str, name: str, key: Any = None, path: str = "", seconds: float = 0.0) -> Any:
    if do == "prepare":
        prepared.clear()  # frees memory for this work
        prepared[name] = contenders.CONTENDERS[name](contenders.given_for(contenders.work_of(key)))
        np.savez(path, **prepared[name].results())
        return {"device": contenders.device_of(name)}
    contender = prepared[name]
    return timed(contender.run, seconds, LEAST_RUNS) if do == "time" else contender.memory()


if __name__ == "__main__":
    serve(sys.argv[1])
