"""The host runner as a device for the check's workers, and workers that crash, hang or return wrong numbers."""

import os
import time
from contextlib import ExitStack
from itertools import islice

import mlx.core as mx

from ember_mlx import GRU, LSTM
from ember_mlx.check import jobs, rows, work
from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import Tile
from tests.metal_host import metal_kernel

BAD = "EMBER_MLX_BAD_WORKERS"  # {what a worker does: the job} as "crash=errors: rnn tanh;hang=..."
_kept = ExitStack()


def host():
    """The kind of kernels, with small problems."""
    mx.set_default_device(mx.cpu)
    _kept.enter_context(kernels_made_by("metal", metal_kernel))
    work.SECONDS, work.LEAST_RUNS = 0.01, 1
    jobs.HEADLINE_SIZE, jobs.SMALL, jobs.LONG = (3, 2, 8), (3, 2, 4), 3
    lstm, gru = rows.Row(lambda: LSTM(3, 4), 4, 2, 3, ("mlx.nn.LSTM", "jax LSTM"), inputs=3), rows.Row(lambda: GRU(3, 4), 4, 2, 3, inputs=3)
    for table, content in ((rows.HEADLINE, {"LSTM 4, B2 T3": lstm}), (rows.OTHER, {"GRU 4, B2 T3": gru})):
        table.clear()
        table.update(content)
    rows.ROWS.clear()
    rows.ROWS.update(rows.HEADLINE | rows.OTHER)
    rows.CANDIDATES[:] = [Tile(64, 1, 8, False), Tile(32, 1, 4, True)]
    layouts, do = jobs._layouts, work.run
    jobs._layouts = lambda kind: islice((job for job in layouts(kind) if job.name.startswith("lstm lstm,")), 2)

    def run(kind, stage, given):
        for what, job in (part.split("=") for part in os.environ.get(BAD, "").split(";") if part):
            if job == f"{stage}: {given.get('recurrence')} {given.get('variant')}":
                return _bad(what, do, kind, stage, given)
        return do(kind, stage, given)

    work.run = run
    return "metal"


def _bad(what, do, kind, stage, given):
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(600)
    if what == "fail":
        raise RuntimeError("the device is lost")
    works, work.works = work.works, lambda errors, like: False
    try:
        return do(kind, stage, given) | {"outputs": 0.5}
    finally:
        work.works = works


def no_gpu():
    """As on a machine without one."""
    return None
