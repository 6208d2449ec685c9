"""How work is laid out on a threadgroup, by GPU family."""

from contextvars import ContextVar
from typing import NamedTuple

import mlx.core as mx

THREADGROUP_BYTES = 32 * 1024  # Metal's limit, kept on CUDA too


class Tile(NamedTuple):
    """A layout.

    Args:
        threads: of a threadgroup.
        rows: sequences that a threadgroup takes together; a weight that it reads serves all of them.
        split: neighbouring lanes that share the inputs of a product.
        resident: whether each thread keeps its weights in registers for the whole sequence, or reads them at every step.
    """

    threads: int
    rows: int
    split: int
    resident: bool


class Family(NamedTuple):
    """What decides the layout on a family of GPUs.

    Args:
        name: how the architecture's name begins.
        threads: of a threadgroup.
        register_floats: weights that a thread can keep in registers.
        most_rows: sequences of a threadgroup at the most.
        evidence: "reasoned" from public figures, or the chip and date of a measurement.
    """

    name: str
    threads: int
    register_floats: int
    most_rows: int
    evidence: str


FAMILIES = (
    # 208 KB of registers a core and about 96 live values a thread at 256 threads: half of them for weights
    Family("applegpu_g13", 256, 48, 4, "reasoned"),
    Family("applegpu_g14", 256, 48, 4, "reasoned"),
    # from the M3 on registers and threadgroup memory share one pool; the older limits are kept as the safe ones
    Family("applegpu", 256, 48, 4, "reasoned"),
    # 65,536 registers an SM: 255 a thread at 256 threads
    Family("sm_90", 256, 176, 4, "reasoned"),
    Family("", 256, 48, 4, "reasoned"),
)


# a layout to use instead of the table's, for tests and for tuning
forced_tile: ContextVar[Tile | None] = ContextVar("forced_tile", default=None)


def family_of(architecture: str) -> Family:
    """The first family that an architecture's name begins with."""
    return next(family for family in FAMILIES if architecture.startswith(family.name))


def current_family(kind: str) -> Family:
    """The family of the GPU in use."""
    info = mx.device_info()
    if kind == "cuda":
        return family_of(f"sm_{info.get('compute_capability_major', '')}{info.get('compute_capability_minor', '')}")
    return family_of(str(info.get("architecture", "")))


def rows_for(family: Family, batch: int, row_bytes: int, cores: int = 10) -> int:
    """Sequences of a threadgroup where weights are read at every step: enough to fill the cores once, within memory; 0 if none fits."""
    return min(family.most_rows, max(1, batch // cores), THREADGROUP_BYTES // row_bytes)
