"""The derivative of a step by reverse accumulation, as a linear map whose coefficients can be computed for all time steps at once.

The gradients of the next states arrive, each product with a hidden value sends one more back, and what a step does to them is linear: sums
and multiplications by coefficients, which depend on the values of the forward pass alone. So the coefficients are taken out of the
sequential part of the backward pass.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .graph import Graph, Node

if TYPE_CHECKING:
    from .definition import Definition

Variable = tuple[str, int]
"""("state", k): the gradient of the k-th next state; ("call", c): what product c sends back; ("sum", j): the j-th sum of some of these."""
Form = dict[Variable, Node]
"""A sum of variables times coefficients."""


@dataclass
class Pull:
    """The linear map from the gradients of the next states to those of everything else.

    Attributes:
        order: what is computed one after another: ("sum", j), or ("call", c) where all gradients of its results are known.
        sums: the forms of the sums.
        results: of each call, the forms of the gradients of its results; None: it has no gradient.
        inputs: node index of an input (x, states, parameters, dt) -> the form of its gradient.
        coefficients: all coefficients that are no numbers, each once.
    """

    order: list[Variable] = field(default_factory=list)
    sums: list[Form] = field(default_factory=list)
    results: dict[int, list[Form]] = field(default_factory=dict)
    inputs: dict[int, Form] = field(default_factory=dict)
    coefficients: list[Node] = field(default_factory=list)

    def forms(self) -> list[Form]:
        """Every form."""
        return [*self.sums, *(form for forms in self.results.values() for form in forms), *self.inputs.values()]


def derive(definition: "Definition") -> Pull:
    """The derivative of a step; its coefficients are nodes of the same graph."""
    graph, pull = definition.graph, Pull()
    nodes = definition.forward_nodes
    gradients: dict[int, Form] = {}
    for k, node in enumerate(definition.after):
        _add(graph, gradients.setdefault(node.index, {}), {("state", k): graph.constant(1)})
    for node in reversed(nodes):
        form = gradients.pop(node.index, {})
        if node.op == "product":
            call, block = node.data
            forms = pull.results.setdefault(call, [{} for _ in definition.calls[call].results])
            forms[block] = form
            if block == 0:  # its other results came before
                pull.order.append(("call", call))
                argument = definition.calls[call].argument
                _add(graph, gradients.setdefault(argument.index, {}), {("call", call): graph.constant(1)})
        elif node.op == "input":
            pull.inputs[node.index] = form
        elif node.op != "constant" and form:
            if len(form) > 1:
                pull.sums.append(form)
                form = {("sum", len(pull.sums) - 1): graph.constant(1)}
                pull.order.append(("sum", len(pull.sums) - 1))
            for argument, slope in _slopes(graph, node):
                _add(graph, gradients.setdefault(argument.index, {}), {v: graph.apply("multiply", c, slope) for v, c in form.items()})
    seen: dict[int, Node] = {}
    for form in pull.forms():
        for coefficient in form.values():
            if coefficient.op != "constant":
                seen.setdefault(coefficient.index, coefficient)
    pull.coefficients = list(seen.values())
    return pull


def _add(graph: Graph, form: Form, other: Form) -> None:
    """Add a form to another."""
    for variable, coefficient in other.items():
        total = graph.apply("add", form[variable], coefficient) if variable in form else coefficient
        if total.op == "constant" and total.data == 0:
            form.pop(variable, None)
        else:
            form[variable] = total


def _slopes(graph: Graph, node: Node) -> list[tuple[Node, Node]]:
    """The arguments of a node that have a gradient, each with the node's slope by it."""
    one, zero, (a, *others) = graph.constant(1), graph.constant(0), node.args

    def of(op: str, *operands: Node | float) -> Node:
        return graph.apply(op, *operands)

    if node.op == "where":
        return [(others[0], of("where", a, one, zero)), (others[1], of("where", a, zero, one))]
    if node.op in ("maximum", "minimum"):
        # against a number the result says as much as the argument, and is an output or at hand more often
        first = of("greater" if node.op == "maximum" else "less", node if others[0].op == "constant" else a, others[0])
        return [(a, of("where", first, one, zero)), (others[0], of("where", first, zero, one))]
    if node.op in ("add", "subtract"):
        return [(a, one), (others[0], one if node.op == "add" else of("negate", one))]
    if node.op == "multiply":
        return [(a, others[0]), (others[0], a)]
    if node.op == "divide":
        return [(a, of("divide", one, others[0])), (others[0], of("negate", of("divide", node, others[0])))]
    slope = {
        "negate": lambda: of("negate", one),
        "abs": lambda: of("where", of("greater", a, zero), one, of("where", of("less", a, zero), of("negate", one), zero)),
        "exp": lambda: node,
        "expm1": lambda: of("add", node, one),
        "log1p": lambda: of("divide", one, of("add", a, one)),
        "tanh": lambda: of("subtract", one, of("multiply", node, node)),
        "sigmoid": lambda: of("multiply", node, of("subtract", one, node)),
        "softplus": lambda: of("sigmoid", a),
        "sin": lambda: of("cos", a),
        "cos": lambda: of("negate", of("sin", a)),
        "sqrt": lambda: of("divide", 0.5, node),
        "erf": lambda: of("multiply", 2 / math.sqrt(math.pi), of("exp", of("negate", of("multiply", a, a)))),
    }
    return [] if node.op not in slope else [(a, slope[node.op]())]
