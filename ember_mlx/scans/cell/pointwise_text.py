"""The kernels of a cell that have one thread for a unit of a row: for all steps at once, or for one step between matrix products.

A kernel is for values of one size: what is written here for H holds for values of another size P in the same way.
Row n of N is one of R rows of a direction; what lies along the steps is read at step t of T, so that with T = 1 it is the row itself.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from ...kernels.loader import KernelText, axes
from ...step.definition import Definition
from ...step.derivative import Variable
from ...step.graph import Node, needed_for
from ...step.metal import statements
from .backward_text import Linear
from .kernel_plan import UNITS, Plan, Size, plan_of, size_of
from .lines import function, kernel_text

FILES = ("pointwise.metal", "cell_pointwise.metal")
ARGUMENTS = "H, THREADS"
TEMPLATE = "int H, int THREADS"
OPENING = [
    "int index = group_index * THREADS + thread_index;",
    "if (index >= dims[0] * H) return;",
    "int row = index / H, u = index % H, direction = row / dims[1];",
    "int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];",
]
Arrays = list[tuple[str, str, str]]


def _evaluated(plan: Plan, targets: Sequence[Node]) -> tuple[Arrays, list[str], list[str]]:
    """The input arrays, the statements and the values of some nodes."""
    definition = plan.definition
    results = {node.index: (c, b) for c, call in enumerate(definition.calls) for b, node in enumerate(call.results)}
    needed = [n.index for n in needed_for(targets)]
    arrays: Arrays = []
    lines: list[str] = []
    names: dict[int, str] = {}

    def read(name: str, holds: str, nodes: Sequence[tuple[Node, str, str]]) -> None:
        used = [(node, local, index) for node, local, index in nodes if node.index in needed]
        if used:
            arrays.append((name, "const float", holds))
        for node, local, index in used:
            names[node.index] = local
            lines.append(f"float {local} = {name}[{index}];")

    count, parameters = len(definition.x), list(definition.parameters.values())
    read("x_proj", f"(D, T, R, {count}, H)", [(n, f"x{k}", f"(place * {count} + {k}) * H + u") for k, n in enumerate(definition.x)])
    if definition.dt is not None:
        read("times", "(D, T, R)", [(definition.dt, "dt", "place")])
    along = [(n, f"p{k}", f"(direction * {len(parameters)} + {k}) * H + u") for k, n in enumerate(parameters)]
    read("parameters", f"(D, {len(parameters)}, H)", along)
    for k, node in enumerate(definition.before):
        read(f"before{k}", "(N, H)", [(node, f"s{k}", "index")])
    for c, call in enumerate(definition.calls):
        blocks = [(n, f"q{c}_{b}", f"(row * {len(call.results)} + {b}) * H + u") for b, n in enumerate(call.results)]
        read(f"results{c}", f"(N, {len(blocks)}, H)", blocks)
    assert {n for n in needed if definition.graph.nodes[n].op in ("input", "product")} <= {*names, *results}
    made, values = statements(targets, names)
    return [*arrays, ("dims", "const int", "N, R, T, t")], [*lines, *made], values


def _kernel(
    plan: Plan,
    part: str,
    comment: str,
    arrays: Arrays,
    outputs: Arrays,
    body: list[str],
    size: Size,
    along: tuple[tuple[str, str], ...] = (),
) -> KernelText:
    text = function(TEMPLATE, [comment], [*arrays, *outputs], [*OPENING, *body])
    text, arguments = (re.sub(r"\bH\b", size.letter, given) for given in (text, ARGUMENTS))
    return kernel_text(plan.definition.name, part, arguments, FILES, text, [a for a, _, _ in arrays], [a for a, _, _ in outputs], along)


def _along_rows(arrays: Arrays) -> tuple[tuple[str, str], ...]:
    """Where all steps are taken at once: rows (D, N / D) along the steps."""
    names = [name for name, _, _ in arrays]
    states = [n for n in names if n.startswith(("before", "argument", "after"))]
    results = [n for n in names if n.startswith(("results", "coefficients"))]
    return axes(dth=" ".join(["x_proj", *states]), dt="times", dtsh=" ".join(results))


@lru_cache(maxsize=128)
def arguments_kernel(definition: Definition, stage: int, size: Size) -> KernelText | None:
    """The arguments of a stage's products that are no states before the step, (N, H) each; None where there are none."""
    plan = plan_of(definition)
    numbers = computed_arguments(definition, stage, size)
    if not numbers:
        return None
    arrays, lines, values = _evaluated(plan, [plan.arguments[k] for k in numbers])
    outputs: Arrays = [(f"argument{k}", "float", "(N, H)") for k in numbers]
    body = [*lines, *(f"argument{k}[index] = {value};" for k, value in zip(numbers, values, strict=True))]
    comment = f"The arguments of the products of stage {stage}."
    return _kernel(plan, "arguments", comment, arrays, outputs, body, size, _along_rows([*arrays, *outputs]))


def computed_arguments(definition: Definition, stage: int, size: Size) -> list[int]:
    """The numbers of a stage's arguments of a size that are no states before the step."""
    plan, before = plan_of(definition), {node.index for node in definition.before}
    arguments = {k: plan.arguments[k] for k in plan.stage_arguments(stage)}
    return [k for k, node in arguments.items() if node.index not in before and size_of(node) == size]


@lru_cache(maxsize=64)
def coefficients_kernel(definition: Definition, size: Size = UNITS) -> KernelText:
    """The coefficients of the derivative, (N, count, H)."""
    plan = plan_of(definition)
    arrays, lines, values = _evaluated(plan, plan.coefficients_of(size))
    count = len(values)
    outputs: Arrays = [("coefficients", "float", f"(N, {count}, H)")]
    writes = [f"coefficients[(row * {count} + {n}) * H + u] = {value};" for n, value in enumerate(values)]
    return _kernel(
        plan,
        "coefficients",
        "What the derivative takes of the step.",
        arrays,
        outputs,
        [*lines, *writes],
        size,
        _along_rows([*arrays, *outputs]),
    )


@lru_cache(maxsize=64)
def next_kernel(definition: Definition, size: Size = UNITS) -> KernelText:
    """One step by itself; sequences that have ended go on, since what comes of them touches nothing else and is not kept."""
    plan = plan_of(definition)
    numbers = plan.states(size)
    arrays, lines, values = _evaluated(plan, [definition.after[k] for k in numbers])
    outputs: Arrays = [(f"after{k}", "float", "(N, H)") for k in numbers]
    body = [*lines, *(f"after{k}[index] = {value};" for k, value in zip(numbers, values, strict=True))]
    return _kernel(plan, "next", "The states after one step.", arrays, outputs, body, size)


def level_results(definition: Definition, level: int, size: Size) -> list[int]:
    """The numbers of the calls whose results, of a size, have gradients that are known on a level."""
    return [c for c in plan_of(definition).level_calls(level) if size_of(definition.calls[c].results[0]) == size]


@lru_cache(maxsize=128)
def back_kernel(definition: Definition, level: int, size: Size = UNITS) -> KernelText | None:
    """One step backward: the gradients of a level's calls' results (N, count, H); on the last level all blocks, and the states.

    None where there is nothing of that size.
    """
    plan = plan_of(definition)
    last, count, states = level == plan.depth_back, len(plan.coefficients_of(size)), plan.states(size)
    here, forms = level_results(definition, level, size), plan.blocks[size]
    if not (here or (last and (forms or states))):
        return None
    calls = [c for c in definition.pull.results if plan.levels["call", c] <= level and plan.variable_size(("call", c)) == size]
    variables: dict[Variable, str] = {("state", k): f"g{k}" for k in states}
    variables |= {(kind, k): f"{'m' if kind == 'sum' else 'r'}{k}" for kind, k in definition.pull.order}
    made = Linear(plan, {node.index: f"by[{n} * H]" for n, node in enumerate(plan.coefficients_of(size))}, variables)
    arrays: Arrays = [(f"d_after{k}", "const float", "(D, T, B, H)") for k in states]
    arrays += [(f"coefficients{size.suffix}", "const float", f"(D, T, B, {count}, H)")] * bool(count)
    arrays += [(f"arriving{k}", "const float", "(D, B, H)") for k in states]
    arrays += [(f"returned{c}", "const float", "(D, B, H): what a product sends back") for c in calls]
    arrays += [("lengths", "const int", "(B)"), ("dims", "const int", "N, R, T, t")]
    lines = ["bool valid = dims[3] < lengths[row % dims[1]];"]
    lines += [f"device const float* by = coefficients{size.suffix} + place * {count} * H + u;"] * bool(count)
    lines += [f"float g{k} = arriving{k}[index] + (valid ? d_after{k}[place * H + u] : 0.0f);" for k in states]
    lines += [f"float r{c} = returned{c}[index];" for c in calls]
    lines += [f"float {line}" for number in range(level + 1) for line in made.sums(number, size)]
    outputs: Arrays = []
    if last:
        d = f"d{size.suffix}"
        outputs += [(d, "float", f"(D, B, {len(forms)}, H)")] * bool(forms) + [(f"before{k}", "float", "(D, B, H)") for k in states]
        lines += [f"{d}[(row * {len(forms)} + {n}) * H + u] = valid ? {made.of(form)} : 0.0f;" for n, form in enumerate(forms)]
        lines += [f"before{k}[index] = valid ? {made.state(k)} : g{k};" for k in states]
        return _kernel(plan, "previous", "One step backward, behind its products.", arrays, outputs, lines, size)
    for c in here:
        places = plan.places(f"call {c}", len(definition.calls[c].results))
        outputs.append((f"d{c}", "float", f"(D, B, {len(places)}, H)"))
        writes = (f"d{c}[(row * {len(places)} + {b}) * H + u] = valid ? {made.of(forms[n])} : 0.0f;" for b, n in enumerate(places))
        lines += writes
    return _kernel(plan, "back", f"One step backward, before its products of level {level}.", arrays, outputs, lines, size)
