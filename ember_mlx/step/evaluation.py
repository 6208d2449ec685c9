"""A step's graph, computed for arrays of NumPy or MLX."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from .definition import Call, Definition
from .functions import apply
from .graph import Node
from .numpy_code import schedule

Product = Callable[[Call, Any], dict[int, Any]]


def evaluate(definition: Definition, targets: Iterable[Node], values: dict[int, Any], product: Product | None = None) -> list[Any]:
    """The values of some nodes of a step.

    Args:
        definition: of the step.
        targets: the nodes.
        values: node index -> its value, of the inputs at least.
        product: (call, value of its argument) -> node index -> value, of its results and whatever else it computes on the way.
    """
    indices, values = tuple(node.index for node in targets), dict(values)
    for node in _order(definition, indices, tuple(values)):
        if node.index in values:
            continue
        if node.op == "constant":
            values[node.index] = node.data
        elif node.op == "product" and product is not None:
            call = definition.calls[node.data[0]]
            values |= product(call, values[call.argument.index])
        elif node.op != "input":  # else a product has computed all that needs it
            values[node.index] = apply(node.op, *(values[a.index] for a in node.args))
    return [values[index] for index in indices]


@lru_cache(maxsize=1024)
def _order(definition: Definition, targets: tuple[int, ...], available: tuple[int, ...]) -> list[Node]:
    nodes = definition.graph.nodes
    return schedule(definition, [nodes[k] for k in targets], [nodes[k] for k in available])
