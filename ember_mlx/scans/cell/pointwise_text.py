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
from .by_step_plan import arguments_made, blocks_at, states_at, values_made
from .kernel_plan import UNITS, Plan, Size, plan_of
from .lines import function, indented, kernel_text

FILES = ("pointwise.metal", "cell_pointwise.metal")
ARGUMENTS = "H, THREADS"
TEMPLATE = "int H, int THREADS"
OPENING = [
    "int index = group_index * THREADS + thread_index;",
    "if (index >= dims[0] * H) return;",
    "int row = index / H, u = index % H, direction = row / dims[1];",
    "int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];",
]
VALID = "dims[3] < lengths[row % dims[1]]"
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
    """The arguments of a stage's products that are to be computed, (N, H) each; None where there are none."""
    nodes = arguments_made(definition, stage, size)
    if not nodes:
        return None
    arrays, outputs, body = _values(definition, nodes)
    comment = f"The arguments of the products of stage {stage}."
    return _kernel(plan_of(definition), "arguments", comment, arrays, outputs, body, size, _along_rows([*arrays, *outputs]))


def _values(definition: Definition, nodes: Sequence[Node]) -> tuple[Arrays, Arrays, list[str]]:
    """A kernel's inputs, outputs and statements, where it computes arguments of products and states."""
    plan = plan_of(definition)
    names = {node.index: f"after{k}" for k, node in enumerate(definition.after)}
    names |= {node.index: f"argument{k}" for k, node in enumerate(plan.arguments)}
    arrays, lines, values = _evaluated(plan, nodes)
    body = [*lines, *(f"{names[node.index]}[index] = {value};" for node, value in zip(nodes, values, strict=True))]
    return arrays, [(names[node.index], "float", "(N, H)") for node in nodes], body


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


@lru_cache(maxsize=128)
def next_kernel(definition: Definition, stage: int, size: Size = UNITS) -> KernelText | None:
    """The values that a stage of one step makes, `values_made`; None where there are none.

    Sequences that have ended go on, since what comes of them touches nothing else and is not kept.
    """
    nodes, arguments = values_made(definition, stage, size), arguments_made(definition, stage, size)
    if len(nodes) == len(arguments):
        return arguments_kernel(definition, stage, size)
    arrays, outputs, body = _values(definition, nodes)
    comment = f"Of one step the arguments of the products of stage {stage}, and states after it."
    return _kernel(plan_of(definition), "next", comment if arguments else "The states after one step.", arrays, outputs, body, size)


class _StepBack:
    """Lines for the values of a size of one step backward.

    Args:
        definition: of the step.
        size: of the values.
        level: after how many products.
        valid: the condition that a sequence has the step.
        arriving: what holds the gradients that arrive from the step after it, by state.
    """

    def __init__(self, definition: Definition, size: Size, level: int, valid: str, arriving: dict[int, str]):
        plan, order = plan_of(definition), definition.pull.order
        self.forms = plan.blocks[size]
        variables: dict[Variable, str] = {("state", k): f"g{k}" for k in arriving}
        variables |= {(kind, k): f"{'m' if kind == 'sum' else 'r'}{k}" for kind, k in order}
        coefficients = plan.coefficients_of(size)
        self.linear = Linear(plan, {node.index: f"by[{n} * H]" for n, node in enumerate(coefficients)}, variables)
        calls = [c for c in definition.pull.results if plan.levels["call", c] <= level and plan.variable_size(("call", c)) == size]
        self.head = [
            f"bool valid = {valid};",
            f"device const float* by = coefficients{size.suffix} + place * {len(coefficients)} * H + u;",
            *(f"float g{k} = {value} + (valid ? d_after{k}[place * H + u] : 0.0f);" for k, value in arriving.items()),
            *(f"float r{c} = returned{c}[index];" for c in calls),
            *(f"float {line}" for number in range(level + 1) for line in self.linear.sums(number, size)),
        ]

    def lines(self, blocks: Sequence[int], d: str, states: Sequence[int]) -> list[str]:
        """What writes blocks and gradients of states, and what that needs."""
        values, count = [self.linear.of(self.forms[n]) for n in blocks], len(blocks)
        written = [f"{d}[(row * {count} + {i}) * H + u] = valid ? {value} : 0.0f;" for i, value in enumerate(values)]
        for k in states:
            written += [f"float b{k} = valid ? {self.linear.state(k)} : g{k};", f"before{k}[index] = b{k};"]
        for line in reversed(self.head):
            name = line.split(" = ")[0].split()[-1]
            written = [line] * any(re.search(rf"\b{name}\b", other) for other in written) + written
        return written


def _back_arrays(plan: Plan, size: Size, body: list[str]) -> Arrays:
    """The inputs that a step backward takes."""
    states, count, text = plan.states(size), len(plan.coefficients_of(size)), "\n".join(body)
    arrays: Arrays = [(f"d_after{k}", "const float", "(D, T, B, H)") for k in states]
    arrays += [(f"coefficients{size.suffix}", "const float", f"(D, T, B, {count}, H)")]
    arrays += [(f"arriving{k}", "const float", "(D, B, H): of the states after step t") for k in states]
    arrays += [(f"passed{k}", "const float", "(D, B, H): of the states before it") for k in states]
    arrays += [(f"returned{c}", "const float", "(D, B, H): what a product sends back") for c in plan.definition.pull.results]
    arrays += [("lengths", "const int", "(B)")]
    return [*(one for one in arrays if re.search(rf"\b{one[0]}\b", text)), ("dims", "const int", "N, R, T, t")]


@lru_cache(maxsize=128)
def back_kernel(definition: Definition, level: int, size: Size = UNITS) -> KernelText | None:
    """One step backward: the blocks and states of a level, `blocks_at` and `states_at`; None where there is nothing of that size.

    For level 0 it is `turn_kernel`.
    """
    if level == 0:
        return turn_kernel(definition, size)
    plan, blocks, states = plan_of(definition), blocks_at(definition, level, size), states_at(definition, level, size)
    if not blocks:
        return None
    step = _StepBack(definition, size, level, VALID, {k: f"arriving{k}[index]" for k in plan.states(size)})
    body = step.lines(blocks, "d", states)
    outputs: Arrays = [("d", "float", f"(D, B, {len(blocks)}, H)"), *((f"before{k}", "float", "(D, B, H)") for k in states)]
    comment = f"One step backward, before its products of level {level}."
    return _kernel(plan, "back", comment, _back_arrays(plan, size, body), outputs, body, size)


@lru_cache(maxsize=64)
def turn_kernel(definition: Definition, size: Size) -> KernelText | None:
    """What is behind the last products of step t backward, and what is before the first ones of step t - 1; t from T to 0.

    There are no steps T and -1: no sequence has them, and what is read of them is that of the steps beside them. Gradients that arrive from
    beyond T pass on.
    """
    plan = plan_of(definition)
    last, first = (blocks_at(definition, level, size) for level in (plan.depth_back, 0))
    states, outputs, body = states_at(definition, plan.depth_back, size), Arrays(), list[str]()
    if last or states:
        end = _StepBack(definition, size, plan.depth_back, VALID, {k: f"arriving{k}[index]" for k in plan.states(size)})
        body += ["place -= dims[3] == dims[2] ? dims[1] : 0;", *end.lines(last, "d_last", states)]
        outputs += [("d_last", "float", f"(D, B, {len(last)}, H)")] * bool(last) + [(f"before{k}", "float", "(D, B, H)") for k in states]
    if first and plan.depth_back:
        arriving = {k: f"b{k}" if k in states else f"passed{k}[index]" for k in plan.states(size)}
        start = _StepBack(definition, size, 0, f"dims[3] > 0 && {VALID.replace('dims[3]', 'dims[3] - 1')}", arriving)
        place = "int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];"
        body += ["{", *indented([place, *start.lines(first, "d", [])]), "}"]
        outputs.append(("d", "float", f"(D, B, {len(first)}, H)"))
    comment = "Behind one step backward and its products, and before those of the step before it."
    return _kernel(plan, "previous", comment, _back_arrays(plan, size, body), outputs, body, size) if body else None
