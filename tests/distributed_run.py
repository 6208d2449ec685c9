"""The script run by each process of tests/test_distributed.py: `mlx.launch -n 2 tests/distributed_run.py FOLDER WHAT`."""

import os
import signal
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).parents[1]))

from ember_mlx import CfC, SequenceModel
from ember_mlx.training import Sequences, fit


def train(folder: Path, what: str = "whole", distributed: bool = False) -> SequenceModel:
    """Three epochs of uneven batches: 13 sequences, 4 a batch, so that one process has no part of the last."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, 13)
    x = [rng.standard_normal((T, 2)) for T in lengths]
    data = Sequences(x, [a.cumsum(axis=0)[:, :1] for a in x])
    mx.random.seed(0)
    model = SequenceModel(CfC(6, 2, return_sequences=True), outputs=1)
    rank = mx.distributed.init().rank() if distributed else 0

    def die(model: object, history: dict[str, list[float]]) -> None:
        if what == "killed" and rank == 1 and len(history["loss"]) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"epochs": 3, "batch_size": 4, "loss": "mse", "progress": False, "learning_rate": 1e-2, "validation": data}
    fit(model, data, **options, distributed=distributed, checkpoint=folder, resume=what == "resumed", callbacks=[die])  # type: ignore[arg-type]
    return model


if __name__ == "__main__":
    trained = train(Path(sys.argv[1]), sys.argv[2], distributed=True)
    rank = mx.distributed.init().rank()
    arrays = {str(k): np.array(a) for k, (_, a) in enumerate(tree_flatten(trained.parameters()))}
    np.savez(Path(sys.argv[1]) / f"rank-{rank}.npz", **arrays)
    print(f"rank {rank} of {mx.distributed.init().size()} is done", flush=True)
