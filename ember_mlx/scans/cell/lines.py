"""Lines of kernel text."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ...kernels.loader import KernelText
from ...step.metal import commented
from .kernel_plan import UNITS, Size

PLACE = "NAME"  # in the place of a name that hangs on the text
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
GROUP = "int group_index, int thread_index, threadgroup float4* scratch"


def indented(lines: Iterable[str], by: int = 2) -> list[str]:
    """Lines further to the right, but for what the preprocessor reads."""
    return [line if line.startswith("#") else " " * by + line for line in lines]


def for_units(body: Sequence[str], size: Size = UNITS) -> list[str]:
    """A loop over a lane's units of a size: `u`, or `read` where every lane reads."""
    text, tile = "\n".join(body), size.tile
    if not body:
        return []
    declared = [f"{name} = {value}" for name, value in (("u", f"block * {tile}::GROUPS + group"),) if re.search(r"\b(u|read)\b", text)]
    declared += [f"read = or_last(u, {size.letter})"] * bool(re.search(r"\bread\b", text))
    head = [f"int {', '.join(declared)};"] if declared else []
    return [f"#pragma unroll({tile}::UNROLL)", f"for (int block = 0; block < {tile}::BLOCKS; block++) {{", *indented([*head, *body]), "}"]


def for_values(body: Sequence[str], size: Size = UNITS) -> list[str]:
    """A loop over a lane's values of a size: number `i`, of row `r`."""
    head = ["int i = block * ROWS + r;"] if re.search(r"\bi\b", "\n".join(body)) else []
    return for_units(["#pragma unroll", "for (int r = 0; r < ROWS; r++) {", *indented([*head, *body]), "}"] if body else [], size)


def writes(size: Size) -> str:
    """Whether a lane writes a value."""
    return f"part == 0 && u < {size.letter} && r < rows.count"


class Reading(NamedTuple):
    """What a step reads of each value.

    Args:
        name: of the array in which a lane has it.
        value: it in device memory, at `place`.
        size: its size.
    """

    name: str
    value: str
    size: Size = UNITS


def _by_size(readings: Sequence[Reading]) -> list[tuple[Size, list[Reading]]]:
    sizes = dict.fromkeys(one.size for one in readings)
    return [(size, [one for one in readings if one.size == size]) for size in sizes]


def read_ahead(readings: Sequence[Reading], step: str, timed: bool = False) -> list[str]:
    """What is read for a step one step before, off its chain, where registers hold it."""
    if not readings and not timed:
        return []
    place, lines = f"int place = place_near(rows, {step}, r);", list[str]()
    for size, some in _by_size(readings):
        lines += for_values([place, *(f"{name}_read[i] = {value};" for name, value, _ in some)], size)
    if timed:
        lines += ["#pragma unroll", f"for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, {step}, r)];"]
    return ["if (AHEAD) {", *indented(lines), "}"]


def read_now(readings: Sequence[Reading], timed: bool = False, also: Mapping[Size, Sequence[str]] | None = None) -> list[str]:
    """What a step needs of what was read before, or is read now; `also`: what else is done with each value of a size that is read."""
    lines = declare_values([(one.name, one.size) for one in readings])
    if timed:
        lines += [*declare(["dt"], "ROWS"), "#pragma unroll", "for (int r = 0; r < ROWS; r++) {"]
        lines += ["  if (!AHEAD) dt_read[r] = times[place_near(rows, t, r)];", "  dt[r] = dt_read[r];", "}"]
    for size, some in _by_size(readings):
        values = ["int place = place_near(rows, t, r);"]
        for name, value, _ in some:
            values += [f"if (!AHEAD) {name}_read[i] = {value};", f"{name}[i] = {name}_read[i];"]
        lines += for_values([*values, *(also or {}).get(size, [])], size)
    return lines


def declare_values(names: Sequence[tuple[str, Size]], kind: str = "float") -> list[str]:
    """Arrays of a lane's values, of one size after the other."""
    sizes = dict.fromkeys(size for _, size in names)
    return [line for size in sizes for line in declare([name for name, own in names if own == size], f"{size.tile}::COUNT", kind)]


def declare(names: Sequence[str], size: str, kind: str = "float") -> list[str]:
    """Arrays of one size."""
    return [f"{kind} {', '.join(f'{name}[{size}]' for name in names[k : k + 6])};" for k in range(0, len(names), 6)]


def function(template: str, comment: Sequence[str], arrays: Sequence[tuple[str, str, str]], body: Sequence[str]) -> str:
    """A kernel's function; arrays: (name, type, what it holds)."""
    parameters = [f"    device {kind}* {name},  // {holds}" for name, kind, holds in arrays]
    lines = [*(f"// {line}" for line in comment), f"template <{template}>", f"inline void {PLACE}(", *parameters, f"    {GROUP}) {{"]
    return "\n".join([*lines, *map(commented, indented(body)), "}", ""])


def kernel_text(
    cell: str,
    part: str,
    arguments: str,
    files: tuple[str, ...],
    text: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: tuple[tuple[str, str], ...] = (),
    carried: tuple[tuple[str, str], ...] = (),
) -> KernelText:
    """A kernel of this text; its name has the cell's, a digest of the text, and which part of the scan it is."""
    word = re.sub(r"^[^a-z]+|\W", "", cell.lower(), flags=re.ASCII) or "cell"
    named = f"{word}_{hashlib.sha256(text.encode()).hexdigest()[:12]}_{part}"
    return KernelText(named, arguments, files, tuple(inputs), tuple(outputs), axes, carried, text.replace(PLACE, named))
