"""Expressions of a step's graph as text of the subset that Metal and CUDA share (metal/README.md).

Text holds a mark behind each expression that the author's comments number, as "@2" behind one of equation (2); `commented` makes comments
of the marks once lines are complete.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .derivative import Form, Variable
from .graph import Node, needed_for

MARK = re.compile(r"@(\d+)")
INLINED = 60  # letters of an expression that is written where it is used once, instead of under a name of its own
_FUNCTIONS = {
    "abs": "fabs",
    "exp": "exp",
    "expm1": "exp_minus_one",
    "log1p": "log_one_plus",
    "tanh": "fast_tanh",
    "sigmoid": "fast_sigmoid",
    "softplus": "soft_plus",
    "sin": "sin",
    "cos": "cos",
    "sqrt": "sqrt",
    "erf": "erf_of",
}
COSTLY = frozenset(_FUNCTIONS) - {"abs"} | {"divide"}  # take about as long as a tanh
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}


def number(value: float) -> str:
    """A number as float32.

    Example:
        >>> from ember_mlx.step.metal import number
        >>> number(0.05), number(-2.0), number(1e-20)
        ('0.05f', '(-2.0f)', '1e-20f')
    """
    text = str(np.float32(value))
    return f"({text}f)" if value < 0 else f"{text}f"


def is_float32(value: float) -> bool:
    """Whether a number has a float32 near it."""
    return abs(value) <= float(np.finfo(np.float32).max)


def statements(
    targets: Sequence[Node], names: Mapping[int, str], kept: Mapping[int, str] | None = None, shared: Iterable[int] = ()
) -> tuple[list[str], list[str]]:
    """What computes some nodes: statements, and each node's text behind them.

    Args:
        targets: the nodes.
        names: node index -> text of what is there already.
        kept: node index -> what a value is assigned to, where others will need it.
        shared: indices of nodes that get names of their own.

    Example:
        >>> from ember_mlx.step.graph import Graph
        >>> from ember_mlx.step.metal import statements
        >>> graph = Graph()
        >>> a = graph.input("a")
        >>> statements([(a + 1) * a], {a.index: "a[i]"})
        ([], ['(a[i] + 1.0f) * a[i]'])
    """
    kept, text = kept or {}, dict(names)
    nodes = needed_for(targets, [targets[0].graph.nodes[k] for k in names] if targets else [])
    uses = Counter([a.index for n in nodes if n.index not in names for a in n.args] + [n.index for n in targets] + list(shared))
    lines = []
    for node in nodes:
        if node.index in names:
            continue
        made = expression(node, text) + marks(node)
        if node.index in kept:
            lines.append(f"{kept[node.index]} = {made};")
            text[node.index] = kept[node.index]
        elif node.op != "constant" and (uses[node.index] > 1 or len(MARK.sub("", made)) > INLINED):
            lines.append(f"{'bool' if node.is_condition else 'float'} v{node.index} = {made};")
            text[node.index] = f"v{node.index}"
        else:
            text[node.index] = made
    return lines, [text[node.index] for node in targets]


def marks(node: Node) -> str:
    """The marks of a node: the numbers of its equations."""
    return "".join(f"@{number}" for number in re.findall(r"\d+", node.tag))


def commented(line: str) -> str:
    """A line without marks, with a comment that has the numbers of its equations.

    Example:
        >>> from ember_mlx.step.metal import commented
        >>> commented("v3 = fast_tanh(x[i] + q[i]@1)@2@1;")
        'v3 = fast_tanh(x[i] + q[i]);  // (1), (2)'
    """
    numbers = sorted(set(map(int, MARK.findall(line))))
    return f"{MARK.sub('', line)}  // {', '.join(f'({n})' for n in numbers)}" if numbers else line


def expression(node: Node, text: Mapping[int, str]) -> str:
    """One node from the text of its arguments."""
    if node.op == "constant":
        return number(node.data)
    a = [_grouped(text[one.index]) for one in node.args]
    plain = [text[one.index] for one in node.args]
    if node.op in _SIGNS:
        return f"{a[0]} {_SIGNS[node.op]} {a[1]}"
    if node.op == "negate":
        return f"-{a[0]}"
    if node.op == "divide":
        return _quotient(node, a, plain)
    if node.op in ("maximum", "minimum"):  # where they are equal, the second one
        return f"select({plain[1]}, {plain[0]}, {a[0]} {'>' if node.op == 'maximum' else '<'} {a[1]})"
    if node.op == "where":  # `select`, since of `?:` a compiler may make a branch
        return f"select({plain[2]}, {plain[1]}, {plain[0]})"
    return f"{_FUNCTIONS[node.op]}({plain[0]})"


def _quotient(node: Node, a: Sequence[str], plain: Sequence[str]) -> str:
    """By a number: times its reciprocal, where float32 has one."""
    divisor = node.args[1]
    if divisor.op == "constant" and is_float32(1 / divisor.data) and abs(1 / divisor.data) > float(np.finfo(np.float32).tiny):
        return f"{a[0]} * {number(1 / divisor.data)}"
    return f"fast::divide({plain[0]}, {plain[1]})"


def _grouped(text: str) -> str:
    """In parentheses, unless it is a name, a number or a call."""
    depth = 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and letter in " -":
            return f"({text})"
    return text


def linear(form: Form, coefficients: Mapping[int, str], variables: Mapping[Variable, str]) -> str:
    """A sum of variables times coefficients, from the text of both.

    Example:
        >>> from ember_mlx.step.graph import Graph
        >>> from ember_mlx.step.metal import linear
        >>> graph = Graph()
        >>> c = graph.input("c")
        >>> linear({("state", 0): c, ("call", 0): graph.constant(1)}, {c.index: "k0[i]"}, {("state", 0): "g0[i]", ("call", 0): "r0[i]"})
        'k0[i] * g0[i] + r0[i]'
    """
    text = ""
    for variable, coefficient in form.items():
        sign, factor = without_sign(coefficient)
        scale = abs(factor.data) if factor.op == "constant" else math.nan
        negative = sign < 0 or (factor.op == "constant" and factor.data < 0)
        first = number(scale) if factor.op == "constant" else coefficients[factor.index]
        term = variables[variable] if scale == 1 else f"{first} * {variables[variable]}"
        text += (f" {'-' if negative else '+'} " if text else "-" * negative) + term
    return text or "0.0f"


def without_sign(coefficient: Node) -> tuple[int, Node]:
    """A coefficient as a sign and what has none."""
    return (-1, coefficient.args[0]) if coefficient.op == "negate" else (1, coefficient)
