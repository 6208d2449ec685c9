"""Communication between the processes of a distributed run, with detection of lost processes."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

LOST_AFTER = 30.0  # seconds
Joined = tuple[mx.array, mx.array, Any, bool]


class Peers:
    """Sums over all processes.

    If a peer is gone, MLX's ring either raises an error or waits forever, which cannot be interrupted. So a separate thread waits, and the
    caller gives up after a timeout.
    """

    def __init__(self, group: Any):
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._asked: queue.SimpleQueue[Callable[[], Joined]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Joined | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def join(self, value: mx.array, targets: mx.array, gradients: Any, asked: bool) -> Joined:
        """Combine every process's part into the whole batch's loss, number of targets and gradients, and whether any process must stop.

        Raises:
            RuntimeError: a process is lost, or did not reach this step within 30 seconds.
        """
        mx.eval(value, targets, gradients)
        self._asked.put(lambda: self._join(value, targets, gradients, asked))
        try:
            answer = self._answers.get(timeout=LOST_AFTER)
        except queue.Empty:
            raise RuntimeError(f"no answer for {LOST_AFTER:g} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _join(self, value: mx.array, targets: mx.array, gradients: Any, asked: bool) -> Joined:
        total, stops = (mx.distributed.all_sum(a, group=self.group) for a in (targets, mx.array(int(asked))))
        weight = targets / mx.maximum(total, 1)
        value = mx.distributed.all_sum(value * weight, group=self.group)
        gradients = nn.average_gradients(tree_map(lambda g: g * (weight * self.size), gradients), self.group)
        mx.eval(total, stops, value, gradients)
        return value, total, gradients, bool(stops.item())

    def _work(self) -> None:
        while True:
            job = self._asked.get()
            try:
                self._answers.put(job())
            except Exception as error:
                self._answers.put(error)
