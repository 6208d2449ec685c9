"""The parent's side of a worker process, which may crash or hang."""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from .jobs import Job

START_LIMIT = 120.0  # seconds until a worker's greeting


class Worker:
    """A process that runs jobs one after another.

    Args:
        device: as for `worker.main`.
        before: a command to run the worker under.
    """

    def __init__(self, device: str | None = None, before: Sequence[str] = ()):
        command = [*before, sys.executable, "-m", "ember_mlx.check.worker", *(["--device", device] if device else [])]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        hello = self._answer(START_LIMIT)
        if "machine" not in hello:
            raise RuntimeError(f"a worker did not start: {hello['why']}")
        self.machine: dict[str, Any] = hello["machine"]
        self.jobs = [Job(*job) for job in hello["jobs"]]

    def run(self, job: Job, limit: float) -> dict[str, Any]:
        """The result of a job, even if the process crashes; it is ended after `limit` seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer reports that it has ended
            print(json.dumps([job.stage, job.given]), file=self.process.stdin, flush=True)
        return self._answer(limit)

    def end(self) -> int:
        """Let the process exit, or end it; returns the exit status."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            self.process.kill()
            self.process.wait()
            return {"state": "HUNG", "why": f"no result after {limit:.0f} s"}
        if line is None:
            return {"state": "CRASHED", "why": self._last_words()}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        status = self.process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return ": ".join([how, *lines[-1:]])
