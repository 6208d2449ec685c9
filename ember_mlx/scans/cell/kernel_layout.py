"""How a cell's scan is laid out on a threadgroup: its products and its memory; metal/cell.metal says what lies there."""

from typing import Any, NamedTuple

from ...kernels.tiles import FUNCTION, Tile, Work
from ...kernels.weight_layout import ProductShape
from ...step.definition import Definition
from ...step.graph import Node, needed_for
from ...step.metal import COSTLY
from .kernel_plan import Plan, plan_of


class Layout(NamedTuple):
    """The forward or the backward scan in one layout.

    Args:
        plan: of the cell.
        H: units.
        tile: the layout.
    """

    plan: Plan
    H: int
    tile: Tile

    def shape(self, inputs: int, outputs: int) -> ProductShape:
        """A product of a step with so many results of each unit."""
        return ProductShape(inputs, outputs * self.H, self.tile.split, outputs, self.tile.threads, True)


class Forward(Layout):
    """The forward scan."""

    @property
    def shapes(self) -> list[ProductShape]:
        """Of the products, in the order of their weights."""
        return [self.shape(self.H, part.blocks) for part in self.plan.parts]

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
        count = len(self.plan.arguments) * (2 if self.plan.definition.depth == 1 else 1)
        return max(1, self.tile.rows * count * self.shape(self.H, 1).row4)

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
        return [self.shape(count * self.H, 1) for count in self.plan.definition.h_products.values()]

    @property
    def weights(self) -> int:
        """Weights of one lane."""
        return sum(shape.floats for shape in self.shapes)

    @property
    def multiplied(self) -> int:
        """Multiply-adds of one lane in a step of one sequence."""
        shapes = dict(zip(self.plan.definition.h_products, self.shapes, strict=True))
        return sum(shapes[self.plan.definition.calls[c].name].floats for c in self.plan.definition.pull.results)

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        shapes, calls = dict(zip(self.plan.definition.h_products, self.shapes, strict=True)), self.plan.definition.calls
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
    """

    spec: Definition
    H: int
    forward: Tile
    backward: Tile

    def scan(self, backward: bool) -> Forward | Backward:
        """The layout of one of the scans."""
        plan = plan_of(self.spec)
        return Backward(plan, self.H, self.backward) if backward else Forward(plan, self.H, self.forward)

    def work(self, backward: bool) -> Work:
        """Of a threadgroup in a step of one of the scans."""
        scan = self.scan(backward)
        tile = scan.tile
        streamed = 0 if tile.resident else 4 * tile.threads * scan.multiplied
        products = Work(tile.rows * tile.threads * scan.multiplied, streamed=streamed, phases=scan.phases)
        return products + FUNCTION * (scan.functions * tile.rows * self.H)

    def template(self, backward: bool) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        tile, scratch = self.backward if backward else self.forward, self.scan(backward).scratch
        layout = {"THREADS": tile.threads, "ROWS": tile.rows, "SPLIT": tile.split, "RESIDENT": tile.resident, "SCRATCH": scratch}
        return [("H", self.H), *layout.items()]


def work_of(targets: list[Node]) -> Work:
    """Of a thread that computes some nodes of a unit."""
    return FUNCTION * (1 + _functions(needed_for(targets)))


def _functions(nodes: list[Node]) -> int:
    return sum(node.op in COSTLY for node in nodes)
