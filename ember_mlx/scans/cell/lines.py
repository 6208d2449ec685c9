"""Lines of kernel text."""

import hashlib
import re
from collections.abc import Iterable, Sequence

from ...kernels.loader import KernelText

PLACE = "NAME"  # in the place of a name that hangs on the text
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
GROUP = "int group_index, int thread_index, threadgroup float4* scratch"


def indented(lines: Iterable[str], by: int = 2) -> list[str]:
    """Lines further to the right, but for what the preprocessor reads."""
    return [line if line.startswith("#") else " " * by + line for line in lines]


def for_units(body: Sequence[str]) -> list[str]:
    """A loop over a lane's units: `u`, or `read` where every lane reads."""
    text = "\n".join(body)
    declared = [f"{name} = {value}" for name, value in (("u", "block * C::GROUPS + group"),) if re.search(r"\b(u|read)\b", text)]
    declared += ["read = or_last(u, H)"] * bool(re.search(r"\bread\b", text))
    head = [f"int {', '.join(declared)};"] if declared else []
    return ["#pragma unroll(C::UNROLL)", "for (int block = 0; block < C::BLOCKS; block++) {", *indented([*head, *body]), "}"]


def for_values(body: Sequence[str]) -> list[str]:
    """A loop over a lane's values: number `i`, of row `r`."""
    head = ["int i = block * ROWS + r;"] if re.search(r"\bi\b", "\n".join(body)) else []
    return for_units(["#pragma unroll", "for (int r = 0; r < ROWS; r++) {", *indented([*head, *body]), "}"])


def read_ahead(readings: Sequence[tuple[str, str]], step: str, timed: bool = False) -> list[str]:
    """What is read for a step one step before, off its chain, where registers hold it; readings: (name, value at `place`)."""
    if not readings and not timed:
        return []
    places = [f"int place = place_near(rows, {step}, r);"]
    lines = for_values([*places, *(f"{name}_read[i] = {value};" for name, value in readings)]) if readings else []
    if timed:
        lines += ["#pragma unroll", f"for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, {step}, r)];"]
    return ["if (AHEAD) {", *indented(lines), "}"]


def read_now(readings: Sequence[tuple[str, str]], timed: bool = False, also: Sequence[str] = ()) -> list[str]:
    """What a step needs of what was read before, or is read now; `also`: what else is done with each value."""
    lines = declare([name for name, _ in readings], "C::COUNT")
    values = ["int place = place_near(rows, t, r);"] * bool(readings)
    for name, value in readings:
        values += [f"if (!AHEAD) {name}_read[i] = {value};", f"{name}[i] = {name}_read[i];"]
    if timed:
        lines += [*declare(["dt"], "ROWS"), "#pragma unroll", "for (int r = 0; r < ROWS; r++) {"]
        lines += ["  if (!AHEAD) dt_read[r] = times[place_near(rows, t, r)];", "  dt[r] = dt_read[r];", "}"]
    return [*lines, *(for_values([*values, *also]) if [*values, *also] else [])]


def declare(names: Sequence[str], size: str, kind: str = "float") -> list[str]:
    """Arrays of one size."""
    return [f"{kind} {', '.join(f'{name}[{size}]' for name in names[k : k + 6])};" for k in range(0, len(names), 6)]


def function(template: str, comment: Sequence[str], arrays: Sequence[tuple[str, str, str]], body: Sequence[str]) -> str:
    """A kernel's function; arrays: (name, type, what it holds)."""
    parameters = [f"    device {kind}* {name},  // {holds}" for name, kind, holds in arrays]
    lines = [*(f"// {line}" for line in comment), f"template <{template}>", f"inline void {PLACE}(", *parameters, f"    {GROUP}) {{"]
    return "\n".join([*lines, *indented(body), "}", ""])


def kernel_text(
    name: str,
    arguments: str,
    files: tuple[str, ...],
    text: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: tuple[tuple[str, str], ...] = (),
    carried: tuple[tuple[str, str], ...] = (),
) -> KernelText:
    """A kernel of this text; its name has "{}" where a digest of the text comes."""
    named = name.format(hashlib.sha256(text.encode()).hexdigest()[:12])
    return KernelText(named, arguments, files, tuple(inputs), tuple(outputs), axes, carried, text.replace(PLACE, named))
