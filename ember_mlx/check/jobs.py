"""The jobs of the check, in order."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..kernels.tiles import current_family
from ..scans.registry import RECURRENCES
from .rows import CANDIDATES, HEADLINE, OTHER, Row

STAGES = {
    "errors": "every cell forward and backward against float64",
    "times": "CfC, LTC, LSTM and GRU of 64 units",
    "peers": "other installed libraries on the same work",
    "memory": "the peak of a training step",
    "sizes": "other layers and sizes, and their peers",
    "layouts": "all variants in every layout that the table can choose",
    "sanitizer": "compute-sanitizer's memcheck and racecheck (CUDA)",
    "tuning": "layouts other than the table's choice",
}
QUICK = ("errors", "times")
LONG = 1000  # time steps of the rows used for memory and layouts
HEADLINE_SIZE, SMALL = (33, 5, 64), (7, 3, 31)  # T, B, H
HEADLINE_VARIANTS = {
    "cfc": ("default", "mixed_memory", "layered"),
    "ltc": ("full", "sparse"),
    "rnn": ("tanh",),
    "lstm": ("lstm",),
    "gru": ("gru",),
    "quantum": ("lqnet", "ctrqnet"),
    "recurrent": ("lem", "grud", "sru_bidirectional"),
}
HALF_VARIANTS = {"cfc": ("default",), "lstm": ("lstm",)}
SANITIZED = {"cfc": "layered_mixed_memory", "ltc": "full", "lstm": "lstm", "gru": "gru", "quantum": "ctrqnet_noise", "recurrent": "grud"}
TOOLS = ("memcheck", "racecheck")


class Job(NamedTuple):
    """One line of the results.

    Args:
        stage: a name of `STAGES`.
        name: name of the line, unique within its stage.
        given: the arguments of `work.run`.
    """

    stage: str
    name: str
    given: dict[str, Any]

    @property
    def key(self) -> str:
        """The stage and the name."""
        return f"{self.stage}: {self.name}"


def all_jobs(kind: str) -> list[Job]:
    """Every job for kernels of a kind on this machine, in the order of `STAGES`."""
    jobs = [*_errors(kind), *_times("times", HEADLINE), *_peers("peers", HEADLINE)]
    jobs += [Job("memory", name, {"row": name}) for name, row in HEADLINE.items() if row.T >= LONG]
    for name, row in OTHER.items():
        jobs += [*_times("sizes", {name: row}), *_peers("sizes", {name: row})]
    return [*jobs, *_layouts(kind), *(_sanitizer() if kind == "cuda" else ()), *_tuning()]


def chosen(jobs: Sequence[Job], stages: Sequence[str], cells: Sequence[str]) -> list[Job]:
    """The jobs of these stages and cells; all cells if none is given."""
    return [job for job in jobs if job.stage in stages and (not cells or job.name.lower().split(" ")[0].rstrip(",") in cells)]


def cells_of(jobs: Sequence[Job]) -> list[str]:
    """The first words of the jobs' names, accepted by `--only`."""
    return list(dict.fromkeys(job.name.lower().split(" ")[0].rstrip(",") for job in jobs))


def _errors(kind: str) -> Iterator[Job]:
    for name, variants in HEADLINE_VARIANTS.items():
        for variant in variants:
            if _is_served(kind, name, variant):
                given = {"recurrence": name, "variant": variant, "size": HEADLINE_SIZE}
                yield Job("errors", f"{name} {variant}", given)
                if variant in HALF_VARIANTS.get(name, ()) and RECURRENCES[name].fused.half:
                    yield Job("errors", f"{name} {variant}, bfloat16", given | {"half": True})


def _times(stage: str, rows: dict[str, Row]) -> Iterator[Job]:
    for name in rows:
        yield Job(stage, name, {"row": name})


def _peers(stage: str, rows: dict[str, Row]) -> Iterator[Job]:
    for name, row in rows.items():
        for peer in row.peers:
            yield Job(stage, f"{name}, {peer}", {"row": name, "peer": peer})


def _layouts(kind: str) -> Iterator[Job]:
    for name, recurrence in RECURRENCES.items():
        for variant in recurrence.variants:
            if not _is_served(kind, name, variant):
                continue
            given = {"recurrence": name, "variant": variant, "size": SMALL}
            yield Job("layouts", f"{name} {variant}", given)
            spec, _ = recurrence.problem(variant, *SMALL, dtype=np.float32)
            for tile in recurrence.fused.layouts(current_family(), spec):
                yield Job("layouts", f"{name} {variant}, {_described(tile)}", given | {"tile": list(tile), "half": tile.half})


def _sanitizer() -> Iterator[Job]:
    for tool in TOOLS:
        for name, variant in SANITIZED.items():
            given = {"recurrence": name, "variant": variant, "size": (5, 3, 31), "tool": tool}
            yield Job("sanitizer", f"{name} {variant}, {tool}", given)


def _tuning() -> Iterator[Job]:
    for name, row in HEADLINE.items():
        if row.T >= LONG:
            for tile in CANDIDATES:
                yield Job("tuning", f"{name}, {_described(tile)}", {"row": name, "tile": list(tile)})


def _described(tile: Any) -> str:
    kept = "in registers" if tile.resident and tile.gates_resident else "but for gates" if tile.resident else "streamed"
    weights = f"{kept}{', half' if tile.half else ''}"
    return f"{tile.threads} threads, {tile.rows} rows, split {tile.split}, {weights}"


def _is_served(kind: str, name: str, variant: str) -> bool:
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, *SMALL, dtype=np.float32)
    return recurrence.fused.refusal(kind, spec, tree_map(mx.array, arrays)) is None
