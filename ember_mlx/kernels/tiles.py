"""How work is laid out on a threadgroup, by GPU family, and how long it takes by the same figures."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import mlx.core as mx

THREADGROUP_BYTES = 32 * 1024  # Metal's limit, kept on CUDA too
SIMD = 32  # threads of a simdgroup, or warp
INSTRUCTIONS = 128  # of float32, that a core issues in a cycle
PHASE_CYCLES = 500  # of a part of a step that others wait for: read, multiply, shuffle, activate, write and barrier; see metal/README.md


class Tile(NamedTuple):
    """A layout.

    Args:
        threads: of a threadgroup.
        rows: sequences that a threadgroup takes together; a weight that it reads serves all of them. 0: each step has launches of its own.
        split: neighbouring lanes that share the inputs of a product.
        resident: whether each thread keeps its weights in registers for the whole sequence, or reads them at every step.
        half: whether weights stay in the parameters' half precision, where they have it: two in a register.
        gates_resident: with `resident`, whether that holds for the LSTM of a mixed memory too.
    """

    threads: int
    rows: int
    split: int
    resident: bool
    half: bool = False
    gates_resident: bool = True


class Family(NamedTuple):
    """What decides the layout on a family of GPUs.

    Args:
        name: how the architecture's name begins.
        threads: of a threadgroup.
        register_floats: weights that a thread can keep in registers.
        resident_rows: sequences of a threadgroup at the most where weights are in registers.
        streamed_rows: the same where they are read at every step.
        cores: to spread sequences over; of the smallest chip of the family.
        stream_rate: bytes of weights that one core reads in a microsecond, from the cache that all cores share.
        launch_time: microseconds that one more launch in a step takes.
        clock: cycles of a core in a microsecond.
        memory_rate: bytes of device memory that all cores together read or write in a microsecond.
        exps: of base 2, that a core makes in a cycle.
        reciprocals: likewise.
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
    # 208 KB of registers a core and about 96 live values a thread at 256 threads: half of them for weights; 32 bytes a cycle from L2
    Family("applegpu_g13", 256, 48, 2, 4, 8, 32 * 1280, 8, 1280, 68e3, 32, 21, "reasoned"),
    Family("applegpu_g14", 256, 48, 2, 4, 8, 32 * 1400, 8, 1400, 100e3, 32, 21, "reasoned"),
    # from the M3 on registers and threadgroup memory share one pool; the older limits are kept as the safe ones
    Family("applegpu", 256, 48, 2, 4, 8, 32 * 1400, 8, 1400, 100e3, 32, 21, "reasoned"),
    # 65,536 registers an SM: 255 a thread at 256 threads; 64 bytes a cycle from L2
    Family("sm_90", 256, 176, 2, 4, 132, 110e3, 8, 1720, 3e6, 16, 16, "reasoned"),
    Family("", 256, 48, 2, 4, 8, 32 * 1280, 8, 1280, 68e3, 32, 21, "reasoned"),
)


# a layout to use instead of the table's, for tests and for tuning
forced_tile: ContextVar[Tile | None] = ContextVar("forced_tile", default=None)
# the kernel variant of a call while it is checked: its layout was chosen for more sequences, and perhaps more units, than the check has
checked_variant: ContextVar[Any] = ContextVar("checked_variant", default=None)


def family_of(architecture: str) -> Family:
    """The first family that an architecture's name begins with."""
    return next(family for family in FAMILIES if architecture.startswith(family.name))


def current_family() -> Family:
    """The family of the GPU in use; MLX names its architecture on Metal ("applegpu_g13g") and on CUDA ("sm_90") alike."""
    return family_of(str(mx.device_info().get("architecture", "")))


def rows_for(family: Family, batch: int, row_bytes: int, resident: bool = False) -> int:
    """Sequences of a threadgroup: enough to fill the cores once, within memory; 0 if none fits."""
    most = family.resident_rows if resident else family.streamed_rows
    return min(most, max(1, -(-batch // family.cores)), THREADGROUP_BYTES // row_bytes)


def split_for(splits: Sequence[int], threads: int, units: int) -> int:
    """The most lanes to a unit with which a threadgroup takes all units at once, of `splits` from many to few; the fewest if there is none.

    Units that a group of lanes takes one after another wait for each other's shuffles.
    """
    return next((split for split in splits if threads // split >= units), splits[-1])


def layouts_for(family: Family, splits: Sequence[int]) -> list[Tile]:
    """Every layout with weights in registers or read at every step, and as many sequences as `rows_for` can give, for their check."""
    numbers = {True: family.resident_rows, False: family.streamed_rows}
    return [
        Tile(family.threads, rows, split, resident) for split in splits for resident, most in numbers.items() for rows in range(1, most + 1)
    ]


def steps_apart(family: Family, batch: int, rows: int, streamed_bytes: int, launches: int) -> bool:
    """Whether a step is faster as matrix products and pointwise launches of its own than inside one launch for the whole sequence.

    Inside one launch every threadgroup reads the weights that are not in registers at every step, at the rate of one core; a product of its
    own reads them with all cores together, and costs its launch.

    Args:
        family: of the GPU.
        batch: sequences.
        rows: of them, that a threadgroup takes; 0: none.
        streamed_bytes: of weights that a threadgroup reads in a step.
        launches: that a step of its own takes.
    """
    if rows == 0:
        return True
    waves = -(-batch // (rows * family.cores))
    return waves * streamed_bytes / family.stream_rate > launches * family.launch_time


@dataclass(frozen=True)
class Work:
    """What a threadgroup does in a step of a scan, or at all where a kernel is parallel over steps.

    Args:
        instructions: of float32, by all its threads.
        exps: of them.
        reciprocals: of them.
        streamed: bytes of weights that it reads.
        phases: parts of the step that wait for each other.

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


FUNCTION = Work(instructions=16, exps=1, reciprocals=1)  # a tanh, a sigmoid or what takes as long
SYNAPSE = Work(instructions=8.5, exps=1, reciprocals=0.5)  # an evaluation of one in metal/ltc.metal


def microseconds(family: Family, work: Work, groups: int) -> float:
    """How long so many threadgroups take: a core has one after another, and what it does in a step passes beside what it reads.

    Example:
        >>> microseconds(family_of("applegpu_g13"), Work(streamed=65536), 8)
        1.6
    """
    cycles = work.instructions / INSTRUCTIONS + work.exps / family.exps + work.reciprocals / family.reciprocals
    of_core = max(work.streamed / family.stream_rate, cycles / family.clock, work.phases * PHASE_CYCLES / family.clock)
    return -(-groups // family.cores) * of_core
