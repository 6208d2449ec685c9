"""python -m tests.chain RECURRENCE VARIANT UNITS THREADS,ROWS,SPLIT: estimate the latency of a warp's step in a kernel from its code.

Compiles a layout's scans for sm_90a (NVRTC) and reads the code of their loops (nvdisasm); both come with the extra `cuda`. Each instruction
waits as many cycles as the assembler wrote into it, and for results that take longer by the latencies below.
One warp alone, on the way that a step takes: of a branch the arm that follows, but for jumps without a condition. It shows what stands
in sequence, and which of two layouts is better; it does not replace a measurement.

    python -m tests.chain lstm lstm 64 256,1,4
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ember_mlx.kernels.tiles import Tile
from ember_mlx.scans.registry import RECURRENCES

from .kernel_calls import Scan, calls_of
from .nvrtc import compile_call, cuda_folder, unsupported_reason

NVDISASM = "bin/nvdisasm"
# cycles until the result of an instruction without a fixed latency is there; a barrier costs its own
LATENCIES = {"LDS": 30, "SHFL": 24, "MUFU": 24, "LDG": 30, "LDC": 25}  # LDG: read a step ahead
OTHER_LATENCY, BARRIER = 14, 20
SHORTEST_LOOP = 60  # instructions; shorter ones fill or clear memory


class Instruction(NamedTuple):
    """One instruction and its control codes from the assembler.

    Args:
        text: as nvdisasm prints it.
        stall: cycles until the next one.
        sets: the barrier that falls when its result is there; 7: none.
        waits: the barriers that it waits for, a bit each.
    """

    text: str
    stall: int
    sets: int
    waits: int

    @property
    def name(self) -> str:
        """Without a predicate."""
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]


def disassembled(cubin: bytes) -> tuple[list[Instruction], dict[str, int]]:
    """A kernel's instructions, and the index of the one after each label."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(cuda_folder() / NVDISASM), "-hex", "-c", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = iter(text.splitlines())
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);?\s+/\* 0x[0-9a-f]{16} \*/", line):
            bits = re.search(r"/\* 0x([0-9a-f]{16}) \*/", next(lines))
            control = int(bits[1], 16) >> 41 if bits else 0
            instructions.append(Instruction(found[1].strip(), control & 15, control >> 5 & 7, control >> 11 & 63))
    return instructions, labels


def loops(instructions: list[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    """First and last instruction of every loop that is long enough for a scan."""
    jumps = [(labels[found[1]], k) for k, one in enumerate(instructions) if (found := _target(one)) and found[1] in labels]
    return [(first, last) for first, last in jumps if last - first >= SHORTEST_LOOP]


def chain(instructions: list[Instruction], labels: dict[str, int], first: int, last: int) -> tuple[int, Counter[str]]:
    """The cycles of one iteration of a loop, and the count of each instruction."""
    now, k, ready, counts = 0, first, [0] * 8, Counter[str]()
    while k <= last:
        one = instructions[k]
        kind = one.name.split(".")[0]
        counts[kind] += 1
        now = max([now, *(ready[barrier] for barrier in range(6) if one.waits >> barrier & 1)]) + (BARRIER if kind == "BAR" else 0)
        ready[one.sets] = now + LATENCIES.get(kind, OTHER_LATENCY)
        now += max(1, one.stall)
        target = _target(one)
        jumps = target is not None and not one.text.startswith("@") and k < labels.get(target[1], 0) <= last
        k = labels[target[1]] if target is not None and jumps else k + 1
    return now, counts


def _target(one: Instruction) -> re.Match[str] | None:
    return re.search(r"`\((\.L\w+)\)", one.text) if one.name == "BRA" else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each scan's loops."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recurrence", choices=RECURRENCES)
    parser.add_argument("variant", help="of its random_cases.py")
    parser.add_argument("units", type=int)
    parser.add_argument("tile", help="threads,rows,split", type=lambda text: Tile(*map(int, text.split(",")), True))
    options = parser.parse_args(arguments)
    reason = unsupported_reason(NVDISASM)
    if reason:
        parser.error(reason)
    for call in calls_of("cuda", Scan(options.recurrence, options.variant, (3, 32, options.units), tile=options.tile)):
        if not call.name.endswith(("forward", "backward")):
            continue
        instructions, labels = disassembled(compile_call(call).cubin)
        for first, last in loops(instructions, labels):
            cycles, counts = chain(instructions, labels, first, last)
            if not counts["SHFL"]:
                continue  # no step: it reads or clears memory
            most = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
            print(f"{call.name}: {cycles} cycles, {counts.total()} instructions: {most}")


if __name__ == "__main__":
    sys.exit(main())
