"""The layout of work on a threadgroup, by GPU family, and the figures for estimates of its duration."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import mlx.core as mx

THREADGROUP_BYTES = 32 * 1024  # Metal's limit, kept on CUDA too
SIMD = 32  # threads of a simdgroup, or warp
INSTRUCTIONS = 128  # float32 instructions per core and cycle
PHASE_CYCLES = 500  # cycles of one phase of a step: read, multiply, shuffle, activate, write and barrier; see metal/README.md


class Tile(NamedTuple):
    """A layout.

    Args:
        threads: threads per threadgroup.
        rows: sequences per threadgroup; each weight that it reads is used for all of them. 0: every step is launched separately.
        split: neighbouring lanes that share the inputs of a product.
        resident: whether each thread keeps its weights in registers for the whole sequence, or reads them at every step.
        half: whether half-precision weights are kept in half precision, two per register.
        gates_resident: whether `resident` also applies to the LSTM weights of a mixed memory.
    """

    threads: int
    rows: int
    split: int
    resident: bool
    half: bool = False
    gates_resident: bool = True


class Family(NamedTuple):
    """The figures of a GPU family from which the layout is chosen.

    Args:
        name: prefix of the architecture's name.
        threads: threads per threadgroup.
        register_floats: weights per thread that fit in registers.
        resident_rows: maximum sequences per threadgroup with weights in registers.
        streamed_rows: the same with weights read at every step.
        cores: cores of the smallest chip of the family, over which sequences are spread.
        stream_rate: bytes of weights that one core reads per microsecond from the cache shared by all cores.
        launch_time: microseconds per additional launch in a step.
        clock: core cycles per microsecond.
        memory_rate: bytes of device memory that all cores together read or write per microsecond.
        exps: base-2 exponentials per core and cycle.
        reciprocals: reciprocals per core and cycle.
        evidence: "reasoned" from public figures, or the chip and date of a measurement.
    """

    name: str
    threads: int
    register_floats: int
    resident_rows: int
    streamed_rows: int
    cores: int
    stream_rate: float
    launch_time: float
    clock: float
    memory_rate: float
    exps: float
    reciprocals: float
    evidence: str


FAMILIES = (
    # 208 KB of registers per core, about 96 live values per thread at 256 threads, half of them for weights; 32 bytes per cycle from L2
    Family("applegpu_g13", 256, 48, 2, 4, 8, 32 * 1280, 8, 1280, 68e3, 32, 21, "reasoned"),
    Family("applegpu_g14", 256, 48, 2, 4, 8, 32 * 1400, 8, 1400, 100e3, 32, 21, "reasoned"),
    # since the M3 registers and threadgroup memory share one pool; the older limits are kept, as the safe choice
    Family("applegpu", 256, 48, 2, 4, 8, 32 * 1400, 8, 1400, 100e3, 32, 21, "reasoned"),
    # 65,536 registers per SM, 255 per thread at 256 threads; 64 bytes per cycle from L2
    Family("sm_90", 256, 176, 2, 4, 132, 110e3, 8, 1720, 3e6, 16, 16, "reasoned"),
    Family("", 256, 48, 2, 4, 8, 32 * 1280, 8, 1280, 68e3, 32, 21, "reasoned"),
)


# a layout to use instead of the table's, for tests and for tuning
forced_tile: ContextVar[Tile | None] = ContextVar("forced_tile", default=None)
# the kernel variant of a call during its check; its layout was chosen for more sequences, and perhaps units, than the check's problem has
checked_variant: ContextVar[Any] = ContextVar("checked_variant", default=None)


def family_of(architecture: str) -> Family:
    """The first family whose name is a prefix of the architecture's name."""
    return next(family for family in FAMILIES if architecture.startswith(family.name))


def current_family() -> Family:
    """The family of the GPU in use; MLX reports its architecture on Metal ("applegpu_g13g") and on CUDA ("sm_90")."""
    return family_of(str(mx.device_info().get("architecture", "")))


def rows_for(family: Family, batch: int, row_bytes: int, resident: bool = False) -> int:
    """Sequences per threadgroup: enough to fill the cores once, within threadgroup memory; 0 if not even one fits."""
    most = family.resident_rows if resident else family.streamed_rows
    return min(most, max(1, -(-batch // family.cores)), THREADGROUP_BYTES // row_bytes)


def split_for(splits: Sequence[int], threads: int, units: int) -> int:
    """The most lanes per unit with which a threadgroup computes all units at once, out of `splits` (descending); the fewest if none fits.

    If a lane group computes several units in sequence, each waits for the shuffles of the one before.
    """
    return next((split for split in splits if threads // split >= units), splits[-1])


def layouts_for(family: Family, splits: Sequence[int]) -> list[Tile]:
    """Every layout with weights in registers or read at every step and every row count that `rows_for` can return, for their check."""
    numbers = {True: family.resident_rows, False: family.streamed_rows}
    return [
        Tile(family.threads, rows, split, resident) for split in splits for resident, most in numbers.items() for rows in range(1, most + 1)
    ]


def steps_apart(family: Family, batch: int, rows: int, streamed_bytes: int, launches: int) -> bool:
    """Whether separate launches per step (matrix products and pointwise kernels) are faster than one launch for the whole sequence.

    In a single launch every threadgroup reads the weights that are not in registers at every step, at the rate of one core. A separate
    product reads them with all cores together, at the cost of a launch.

    Args:
        family: the GPU's family.
        batch: number of sequences.
        rows: sequences per threadgroup; 0: none fits.
        streamed_bytes: bytes of weights that a threadgroup reads per step.
        launches: launches per step if launched separately.
    """
    if rows == 0:
        return True
    waves = -(-batch // (rows * family.cores))
    return waves * streamed_bytes / family.stream_rate > launches * family.launch_time


@dataclass(frozen=True)
class Work:
    """The work of a threadgroup, per step in a scan, or in total in a kernel that is parallel over steps.

    Args:
        instructions: float32 instructions of all its threads.
        exps: exponentials among them.
        reciprocals: reciprocals among them.
        streamed: bytes of weights that it reads.
        phases: number of phases of the step that run one after another.

    Example:
        >>> Work(instructions=2) * 3 + Work(exps=1)
        Work(instructions=6, exps=1, reciprocals=0, streamed=0, phases=0)
    """

    instructions: float = 0
    exps: float = 0
    reciprocals: float = 0
    streamed: float = 0
    phases: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(a * times for a in astuple(self)))


FUNCTION = Work(instructions=16, exps=1, reciprocals=1)  # a tanh, a sigmoid or a similar function
SYNAPSE = Work(instructions=8.5, exps=1, reciprocals=0.5)  # one evaluation of a synapse in metal/ltc.metal


def microseconds(family: Family, work: Work, groups: int) -> float:
    """The time of `groups` threadgroups; a core runs them one after another, and overlaps computation with reads.

    Example:
        >>> microseconds(family_of("applegpu_g13"), Work(streamed=65536), 8)
        1.6
    """
    cycles = work.instructions / INSTRUCTIONS + work.exps / family.exps + work.reciprocals / family.reciprocals
    of_core = max(work.streamed / family.stream_rate, cycles / family.clock, work.phases * PHASE_CYCLES / family.clock)
    return -(-groups // family.cores) * of_core
