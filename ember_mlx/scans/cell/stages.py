"""A cell's step by pointwise kernels between matrix products: of all steps at once before the backward scan, or of one step."""

from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.inputs import dims
from ...kernels.loader import KernelText
from ...kernels.parallel import launch_parallel, launch_step
from ...step.definition import Definition
from ...step.graph import Node
from .kernel_layout import work_of
from .kernel_plan import plan_of
from .pointwise_text import arguments_kernel, coefficients_kernel, computed_arguments

Tree = dict[str, Any]
Shape = tuple[int, ...]


class Rows(NamedTuple):
    """What pointwise kernels of one kind are launched for.

    Args:
        kind: "metal" or "cuda".
        D: directions.
        R: rows of a direction.
        H: units.
        step: T and t, where they are the rows of one step of arrays with all; None: of arrays with the same rows.
    """

    kind: str
    D: int
    R: int
    H: int
    step: tuple[int, int] | None = None

    def launch(self, text: KernelText, given: dict[str, mx.array], shapes: list[Shape], targets: list[Node]) -> list[mx.array]:
        """The outputs, (D, R, *shape) each."""
        inputs, template = [given[name] for name in text.inputs[:-1]], [("H", self.H)]
        whole = [(self.D, self.R, *shape) for shape in shapes]
        if self.step is not None:
            numbers = dims(self.D * self.R, self.R, *self.step)
            return launch_step(self.kind, text, template, [*inputs, numbers], self.D * self.R * self.H, whole)
        D, H = self.D, self.H
        work = work_of(targets)
        return launch_parallel(self.kind, text, template, inputs, self.R, lambda R: D * R * H, lambda R: dims(D * R, R, 1, 0), whole, work)


class Stages(NamedTuple):
    """Of some rows the products' arguments, (D, R, H), and their results by call, (D, R, blocks, H)."""

    arguments: list[mx.array]
    results: dict[int, mx.array]


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
    D, _, H = arrays["initial"][definition.states[0]].shape
    return mx.stack([mx.broadcast_to(arrays["parameters"][name], (D, H)) for name in definition.parameters], axis=1)


def run_stages(definition: Definition, rows: Rows, given: dict[str, mx.array], weights: dict[str, mx.array]) -> Stages:
    """All products of a step; `weights` transposed, (D, H, count * H)."""
    plan = plan_of(definition)
    found: dict[int, mx.array] = {}
    before = {node.index: f"before{k}" for k, node in enumerate(definition.before)}
    results: dict[int, mx.array] = {}
    for stage in range(definition.depth):
        found |= {k: given[before[plan.arguments[k].index]] for k in plan.stage_arguments(stage) if plan.arguments[k].index in before}
        text, numbers = arguments_kernel(definition, stage), computed_arguments(definition, stage)
        if text is not None:
            targets = [plan.arguments[k] for k in numbers]
            made = rows.launch(text, given | _named(results), [(rows.H,)] * len(numbers), targets)
            found |= dict(zip(numbers, made, strict=True))
        for c in plan.stage_calls(stage):
            call = definition.calls[c]
            product = found[plan.argument_of(call)] @ weights[call.name]
            results[c] = product.reshape(rows.D, rows.R, len(call.results), rows.H)
    return Stages([found[k] for k in range(len(plan.arguments))], results)


def _named(results: dict[int, mx.array]) -> dict[str, mx.array]:
    return {f"results{c}": a for c, a in results.items()}


def transposed(arrays: Tree) -> dict[str, mx.array]:
    """The weights as products with rows take them."""
    return {name: w.swapaxes(1, 2) for name, w in arrays.get("weights", {}).items()}


def coefficients(
    kind: str, definition: Definition, arrays: Tree, x_proj: mx.array, states: list[mx.array]
) -> tuple[mx.array | None, Stages]:
    """The derivative's coefficients (D, T, B, count, H) of a block of steps, from the states before them; None where there are none."""
    D, T, B, H = states[0].shape
    rows, plan = Rows(kind, D, T * B, H), plan_of(definition)

    def flat(a: mx.array) -> mx.array:
        return a.reshape(D, T * B, *a.shape[3:])

    given = {name: a if name == "parameters" else flat(a) for name, a in given_of(definition, arrays, x_proj).items()}
    given |= {f"before{k}": flat(a) for k, a in enumerate(states)}
    stages = run_stages(definition, rows, given, transposed(arrays))
    count = len(plan.coefficients)
    if not count:
        return None, stages
    text = coefficients_kernel(definition)
    (made,) = rows.launch(text, given | _named(stages.results), [(count, H)], plan.coefficients)
    return made.reshape(D, T, B, count, H), stages
