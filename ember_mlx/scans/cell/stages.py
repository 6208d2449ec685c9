"""A cell's step by pointwise kernels between matrix products: of all steps at once before the backward scan, or of one step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.inputs import dims
from ...kernels.loader import KernelText
from ...kernels.parallel import launch_parallel, launch_step
from ...step.definition import Definition
from ...step.graph import Node
from .by_step_plan import arguments_made, values_made
from .kernel_layout import Numbers, numbers_of, work_of
from .kernel_plan import UNITS, Size, plan_of, size_of
from .pointwise_text import arguments_kernel, coefficients_kernel, next_kernel

Tree = dict[str, Any]
Shape = tuple[int, ...]


class Rows(NamedTuple):
    """What pointwise kernels of one kind are launched for.

    Args:
        kind: "metal" or "cuda".
        D: directions.
        R: rows of a direction.
        numbers: how many values there are of each size.
        step: T and t, where they are the rows of one step of arrays with all; None: of arrays with the same rows.
    """

    kind: str
    D: int
    R: int
    numbers: Numbers
    step: tuple[int, int] | None = None

    def launch(
        self, text: KernelText, given: dict[str, mx.array], shapes: list[Shape], targets: Sequence[Node], size: Size = UNITS
    ) -> list[mx.array]:
        """The outputs, (D, R, *shape, H) each, or another size's number in the place of H."""
        D, H = self.D, self.numbers[size]
        inputs, template = [given[name] for name in text.inputs[:-1]], [(size.letter, H)]
        whole = [(D, self.R, *shape, H) for shape in shapes]
        if self.step is not None:
            return launch_step(self.kind, text, template, [*inputs, dims(D * self.R, self.R, *self.step)], D * self.R * H, whole)
        work = work_of(targets)
        return launch_parallel(self.kind, text, template, inputs, self.R, lambda R: D * R * H, lambda R: dims(D * R, R, 1, 0), whole, work)


class Stages(NamedTuple):
    """Of some rows the values, (D, R, H), by node, and the results of products by call, (D, R, blocks, H)."""

    values: dict[int, mx.array]
    results: dict[int, mx.array]

    def of(self, nodes: Sequence[Node]) -> list[mx.array]:
        """The values of some nodes."""
        return [self.values[node.index] for node in nodes]


def given_of(definition: Definition, arrays: Tree, x_proj: mx.array) -> dict[str, mx.array]:
    """What the kernels take beside the states, by name."""
    given = {"x_proj": x_proj}
    if definition.is_timed:
        given["times"] = arrays["dt"]
    if definition.parameters:
        given["parameters"] = stacked_parameters(definition, arrays)
    return given


def stacked_parameters(definition: Definition, arrays: Tree) -> mx.array:
    """(D, parameters, H), shared ones H times."""
    D, H = arrays["b"].shape[0], numbers_of(definition, arrays)[UNITS]
    return mx.stack([mx.broadcast_to(arrays["parameters"][name], (D, H)) for name in definition.parameters], axis=1)


def run_stages(definition: Definition, rows: Rows, given: dict[str, mx.array], weights: dict[str, mx.array]) -> Stages:
    """All products of a step and their arguments, and of one step by itself the next states; `weights` transposed, (D, H, count * H)."""
    plan, by_step = plan_of(definition), rows.step is not None
    kernel, made_of = (next_kernel, values_made) if by_step else (arguments_kernel, arguments_made)
    results: dict[int, mx.array] = {}
    values = {node.index: given[f"before{k}"] for k, node in enumerate(definition.before)}
    for stage in range(definition.depth + by_step):
        for size in plan.sizes:
            text, nodes = kernel(definition, stage, size), made_of(definition, stage, size)
            if text is not None:
                made = rows.launch(text, given | _named(results), [()] * len(nodes), nodes, size)
                values |= {node.index: a for node, a in zip(nodes, made, strict=True)}
        for c in plan.stage_calls(stage):
            call = definition.calls[c]
            product = values[call.argument.index] @ weights[call.name]
            results[c] = product.reshape(rows.D, rows.R, len(call.results), rows.numbers[size_of(call.results[0])])
            if len(call.results) == 1:
                values[call.results[0].index] = product
    return Stages(values, results)


def _named(results: dict[int, mx.array]) -> dict[str, mx.array]:
    return {f"results{c}": a for c, a in results.items()}


def transposed(arrays: Tree) -> dict[str, mx.array]:
    """The weights as products with rows take them."""
    return {name: w.swapaxes(1, 2) for name, w in arrays.get("weights", {}).items()}


def coefficients(
    kind: str, definition: Definition, arrays: Tree, x_proj: mx.array, states: list[mx.array]
) -> tuple[dict[str, mx.array], Stages]:
    """The derivative's coefficients (D, T, B, count, H) of a block of steps, from the states before them, as kernels name them by size."""
    D, T, B, _ = states[0].shape
    rows, plan = Rows(kind, D, T * B, numbers_of(definition, arrays)), plan_of(definition)

    def flat(a: mx.array) -> mx.array:
        return a.reshape(D, T * B, *a.shape[3:])

    given = {name: a if name == "parameters" else flat(a) for name, a in given_of(definition, arrays, x_proj).items()}
    given |= {f"before{k}": flat(a) for k, a in enumerate(states)}
    stages = run_stages(definition, rows, given, transposed(arrays))
    found = {}
    for size in plan.sizes:
        nodes = plan.coefficients_of(size)
        if nodes:
            text = coefficients_kernel(definition, size)
            (made,) = rows.launch(text, given | _named(stages.results), [(len(nodes),)], nodes, size)
            found[f"coefficients{size.suffix}"] = made.reshape(D, T, B, *made.shape[2:])
    return found, stages
