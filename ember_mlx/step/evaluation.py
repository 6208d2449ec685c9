"""A step's graph, computed for arrays of NumPy or MLX."""

from collections.abc import Callable, Iterable
from typing import Any

from .definition import Call, Definition
from .functions import apply
from .graph import Node, needed_for


def evaluate(definition: Definition, targets: Iterable[Node], values: dict[int, Any], product: Callable[[Call, Any], Any]) -> list[Any]:
    """The values of some nodes of a step.

    Args:
        definition: of the step.
        targets: the nodes.
        values: node index -> its value, of the inputs at least.
        product: (call, value of its argument) -> the values of its results.
    """
    targets, values = list(targets), dict(values)

    def compute(nodes: Iterable[Node]) -> None:
        for node in needed_for(nodes, [definition.graph.nodes[k] for k in values]):
            if node.index in values:
                continue
            if node.op == "constant":
                values[node.index] = node.data
            elif node.op == "product":
                call = definition.calls[node.data[0]]
                compute([call.argument])
                values.update(zip((n.index for n in call.results), product(call, values[call.argument.index]), strict=True))
            else:
                values[node.index] = apply(node.op, *(values[a.index] for a in node.args))

    compute(targets)
    return [values[node.index] for node in targets]
