"""How a cell's scan is laid out on a threadgroup: its products and its memory; metal/cell.metal says what lies there."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...kernels.tiles import FUNCTION, Tile, Work
from ...kernels.weight_layout import ProductShape
from ...step.definition import Definition
from ...step.graph import Node, needed_for
from ...step.metal import COSTLY
from .kernel_plan import UNITS, Plan, Size, plan_of, size_of

Numbers = dict[Size, int]


def numbers_of(definition: Definition, arrays: dict[str, Any]) -> Numbers:
    """How many values there are of each size."""
    plan, numbers = plan_of(definition), {UNITS: arrays["b"].shape[1] // len(definition.x)}
    for size in plan.sizes[1:]:
        states = [arrays["initial"][definition.states[k]].shape[2] for k in plan.states(size)]
        weights = (plan.weight(name) for name in definition.h_products)
        results = [arrays["weights"][w.name].shape[1] // w.blocks for w in weights if w.results == size]
        numbers[size] = [*states, *results][0]
    return numbers


class Layout(NamedTuple):
    """The forward or the backward scan in one layout.

    Args:
        plan: of the cell.
        H: units.
        tile: the layout.
        P: how many values of another size, or 0.
    """

    plan: Plan
    H: int
    tile: Tile
    P: int = 0

    def number(self, size: Size) -> int:
        """How many values there are of a size."""
        return self.H if size == UNITS else self.P

    def shape(self, inputs: int, outputs: int, size: Size = UNITS) -> ProductShape:
        """A product of a step with so many results of each unit of a size."""
        return ProductShape(inputs, outputs * self.number(size), self.tile.split, outputs, self.tile.threads, True)


class Forward(Layout):
    """The forward scan."""

    @property
    def shapes(self) -> list[ProductShape]:
        """Of the products, in the order of their weights."""
        return [self.shape(self.number(part.inputs), part.blocks, part.results) for part in self.plan.parts]

    @property
    def weights(self) -> int:
        """Weights of one lane."""
        return sum(shape.floats for shape in self.shapes)

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one lane in a step of one sequence."""
        return sum(self.shapes[p].floats for call in self.plan.definition.calls for p in self.plan.parts_of(call))

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        rows = sum(self.shape(self.number(size_of(node)), 1).row4 for node in self.plan.arguments)
        return max(1, self.tile.rows * rows * (2 if self.plan.definition.depth == 1 else 1))

    @property
    def phases(self) -> int:
        """Parts of a step that wait for each other."""
        return max(1, self.plan.definition.depth)

    @property
    def functions(self) -> int:
        """Functions of a unit in a step."""
        return _functions(self.plan.definition.forward_nodes)


class Backward(Layout):
    """The backward scan."""

    @property
    def shapes(self) -> list[ProductShape]:
        """Of the transposed products, in the order of their weights."""
        return list(self._shapes.values())

    @property
    def _shapes(self) -> dict[str, ProductShape]:
        weights = (self.plan.weight(name) for name in self.plan.definition.h_products)
        return {w.name: self.shape(w.blocks * self.number(w.results), 1, w.inputs) for w in weights}

    @property
    def weights(self) -> int:
        """Weights of one lane."""
        return sum(shape.floats for shape in self.shapes)

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one lane in a step of one sequence."""
        shapes = self._shapes
        return sum(shapes[self.plan.definition.calls[c].name].floats for c in self.plan.definition.pull.results)

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        shapes, calls = self._shapes, self.plan.definition.calls
        rows = sum(shapes[calls[c].name].row4 for c in self.plan.definition.pull.results)
        return max(1, self.tile.rows * rows * (2 if self.plan.depth_back == 1 else 1))

    @property
    def phases(self) -> int:
        """Parts of a step that wait for each other."""
        return max(1, self.plan.depth_back)

    @property
    def functions(self) -> int:
        """Functions of a unit in a step: multiplications alone, of about as many as one."""
        return 1 + len(self.plan.coefficients) // 8


class Variant(NamedTuple):
    """Sizes of one kernel variant; forward and backward are laid out apart.

    Args:
        spec: the cell's definition.
        H: units.
        forward: the layout of the forward scan; with 0 rows each step has launches of its own.
        backward: that of the backward scan.
        P: how many values of another size, or 0.
    """

    spec: Definition
    H: int
    forward: Tile
    backward: Tile
    P: int = 0

    def scan(self, backward: bool) -> Forward | Backward:
        """The layout of one of the scans."""
        plan = plan_of(self.spec)
        return Backward(plan, self.H, self.backward, self.P) if backward else Forward(plan, self.H, self.forward, self.P)

    def work(self, backward: bool) -> Work:
        """Of a threadgroup in a step of one of the scans."""
        scan = self.scan(backward)
        tile = scan.tile
        streamed = 0 if tile.resident else 4 * tile.threads * scan.multiplied
        products = Work(tile.rows * tile.threads * scan.multiplied, streamed=streamed, phases=scan.phases)
        return products + FUNCTION * (scan.functions * tile.rows * self.H)

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        scan = self.scan(backward)
        tile = scan.tile
        layout = {"THREADS": tile.threads, "ROWS": tile.rows, "SPLIT": tile.split, "RESIDENT": tile.resident, "SCRATCH": scan.scratch}
        return [*((size.letter, scan.number(size)) for size in scan.plan.sizes), *layout.items()]


def work_of(targets: Sequence[Node]) -> Work:
    """Of a thread that computes some nodes of a unit."""
    return FUNCTION * (1 + _functions(needed_for(targets)))


def _functions(nodes: Sequence[Node]) -> int:
    return sum(node.op in COSTLY for node in nodes)
