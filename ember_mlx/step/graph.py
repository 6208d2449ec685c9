"""Expression graphs of a cell's step: nodes without duplicates, simplified as they are made."""

import linecache
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

COMPARISONS = ("less", "less_equal", "greater", "greater_equal")
LEAVES = ("constant", "input", "product")
SHOWN = 3  # levels of arguments in a node's text
TAG = re.compile(r"#.*?(\(\d+\)(?:,? ?\(\d+\))*)")

_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "negate": lambda a: -a,
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": max,
    "minimum": min,
}


class StepError(ValueError):
    """A step that cannot be expressed; its message becomes part of an error that names the cell and the line."""


def kind_of(value: object) -> str:
    """What a value is, as a person would write it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Node:
    """A value of a step: an input, a constant, a result of a product, or a function of other nodes.

    Args:
        graph: the graph it belongs to.
        index: its position there; the nodes that it depends on come before it.
        op: "constant", "input", "product", or the name of a pointwise function.
        args: the nodes it is computed from.
        data: of a constant its value; of an input its name; of a product (call, block).
        size: "H" where it has a value for each of the H units, None where it has one for all; a cell may name other sizes.
        per_row: whether it has a value for each row of the batch.
        is_condition: whether it is the result of a comparison.

    Attributes:
        tag: the equation numbers in the comment of the line that made it, as "(2)", or "".
    """

    __array_ufunc__ = None  # NumPy's functions refuse it
    __hash__ = object.__hash__

    def __init__(
        self, graph: "Graph", index: int, op: str, args: tuple["Node", ...], data: Any, size: str | None, per_row: bool, is_condition: bool
    ):
        self.graph, self.index, self.op, self.args, self.data = graph, index, op, args, data
        self.size, self.per_row, self.is_condition = size, per_row, is_condition
        self.tag = graph.current_tag() if op not in LEAVES else ""

    @property
    def is_full(self) -> bool:
        """Whether it has a value for each unit and row: (B, H)."""
        return self.size is not None and self.per_row

    @property
    def shape(self) -> str:
        """Its shape in letters."""
        return f"({'B' if self.per_row else '1'}, {self.size or '1'})"

    def __repr__(self) -> str:
        return self._text(SHOWN)

    def _text(self, levels: int) -> str:
        """It without what lies more levels down: written out, a node that is used twice a line doubles with every line."""
        if self.op in LEAVES:
            return f"{self.data}"
        return f"{self.op}({', '.join(a._text(levels - 1) for a in self.args) if levels else '...'})"

    def __add__(self, other: Any) -> "Node":
        return self.graph.apply("add", self, other)

    def __radd__(self, other: Any) -> "Node":
        return self.graph.apply("add", other, self)

    def __sub__(self, other: Any) -> "Node":
        return self.graph.apply("subtract", self, other)

    def __rsub__(self, other: Any) -> "Node":
        return self.graph.apply("subtract", other, self)

    def __mul__(self, other: Any) -> "Node":
        return self.graph.apply("multiply", self, other)

    def __rmul__(self, other: Any) -> "Node":
        return self.graph.apply("multiply", other, self)

    def __truediv__(self, other: Any) -> "Node":
        return self.graph.apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Node":
        return self.graph.apply("divide", other, self)

    def __pow__(self, exponent: Any) -> "Node":
        if isinstance(exponent, bool) or not isinstance(exponent, int) or not 1 <= exponent <= 4:
            raise StepError(f"** takes an exponent of 1 to 4, got {exponent!r}")
        result = self
        for _ in range(exponent - 1):
            result = result * self
        return result

    def __neg__(self) -> "Node":
        return self.graph.apply("negate", self)

    def __pos__(self) -> "Node":
        return self

    def __abs__(self) -> "Node":
        return self.graph.apply("abs", self)

    def __lt__(self, other: Any) -> "Node":
        return self.graph.apply("less", self, other)

    def __le__(self, other: Any) -> "Node":
        return self.graph.apply("less_equal", self, other)

    def __gt__(self, other: Any) -> "Node":
        return self.graph.apply("greater", self, other)

    def __ge__(self, other: Any) -> "Node":
        return self.graph.apply("greater_equal", self, other)

    def __eq__(self, other: Any) -> NoReturn:
        raise StepError("values cannot be compared by == or !=; use <, <=, > or >= inside where()")

    def __ne__(self, other: Any) -> NoReturn:
        raise StepError("values cannot be compared by == or !=; use <, <=, > or >= inside where()")

    def __bool__(self) -> NoReturn:
        raise StepError("Python cannot branch on a value, whose numbers differ from unit to unit; use where(condition, a, b)")

    def __float__(self) -> NoReturn:
        raise StepError("a value is no Python number; use the functions of ember_mlx.step on it")

    __int__ = __index__ = __float__

    def __len__(self) -> NoReturn:
        raise StepError("a value has no parts; x and products have, where the cell has more than one of them")

    def __iter__(self) -> NoReturn:
        raise StepError("a value has no parts; x and products have, where the cell has more than one of them")

    def __getitem__(self, index: Any) -> NoReturn:
        raise StepError("a value has no parts; x and products have, where the cell has more than one of them")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise StepError(f"a value has no {name!r}; use the functions of ember_mlx.step on it")


class Graph:
    """The nodes of a step, each expression once.

    Attributes:
        nodes: in the order in which they were made.
        file: of the step's author, while the step is run; its comments number equations.

    Example:
        >>> from ember_mlx.step.graph import Graph
        >>> graph = Graph()
        >>> a = graph.input("a")
        >>> (a * 1 + 0) is a, (2 * a) is (2 * a)
        (True, True)
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.file: str | None = None
        self._known: dict[Any, Node] = {}

    def current_tag(self) -> str:
        """The equation numbers in the line of `file`, the author's, that is being run."""
        frame = sys._getframe(1) if self.file else None
        while frame is not None and frame.f_code.co_filename != self.file:
            frame = frame.f_back
        found = None if frame is None else TAG.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno))
        return "" if found is None else found.group(1)

    def constant(self, value: float) -> Node:
        """A number."""
        value = float(value)
        if not math.isfinite(value):
            raise StepError(f"a constant must be finite, got {value}")
        return self._node("constant", (), value, None, False)

    def input(self, name: str, size: str | None = "H", per_row: bool = True) -> Node:
        """An input of the step."""
        return self._node("input", (), name, size, per_row)

    def product(self, call: int, block: int, size: str = "H") -> Node:
        """A block of the result of a matrix product."""
        return self._node("product", (), (call, block), size, True)

    def as_node(self, value: Any) -> Node:
        """A node for an operand."""
        if isinstance(value, Node):
            if value.graph is not self:
                raise StepError("a value belongs to another step; a step may keep nothing from one call to the next")
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            number: Any = value
            if not (hasattr(value, "dtype") and getattr(value, "shape", None) == () and hasattr(value, "item")):
                raise StepError(f"an operand must be a value of the step or a number, got {kind_of(value)}")
            value = number.item()
        return self.constant(value)

    def apply(self, op: str, *operands: Any) -> Node:
        """A pointwise function of nodes and numbers, simplified."""
        args = tuple(map(self.as_node, operands))
        for k, a in enumerate(args):
            if a.is_condition and not (op == "where" and k == 0):
                raise StepError(f"{op} takes numbers, got a comparison; where(condition, a, b) makes numbers of one")
        if op == "where" and not args[0].is_condition:
            raise StepError("where takes a comparison first, as where(a > 0, a, b)")
        simple = self._simple(op, args)
        if simple is not None:
            return simple
        sizes = {a.size for a in args if a.size is not None}
        if len(sizes) > 1:
            raise StepError(f"{op} takes values of one shape, got {', '.join(a.shape for a in args)}")
        return self._node(op, args, None, next(iter(sizes), None), any(a.per_row for a in args), op in COMPARISONS)

    def _simple(self, op: str, args: tuple[Node, ...]) -> Node | None:
        """What an expression is equal to without that function, or None."""
        numbers = [a.data if a.op == "constant" else None for a in args]
        if op == "divide" and numbers[1] == 0:
            raise StepError("division by the number 0")
        if op in _ON_NUMBERS and all(n is not None for n in numbers):
            return self.constant(_ON_NUMBERS[op](*numbers))
        if op == "add":
            if numbers[0] == 0:
                return args[1]
            if numbers[1] == 0:
                return args[0]
            if args[1].op == "negate":
                return self.apply("subtract", args[0], args[1].args[0])
            if args[0].op == "negate":
                return self.apply("subtract", args[1], args[0].args[0])
        elif op == "subtract":
            if numbers[1] == 0:
                return args[0]
            if numbers[0] == 0:
                return self.apply("negate", args[1])
            if args[1].op == "negate":
                return self.apply("add", args[0], args[1].args[0])
        elif op == "multiply":
            for a, other, number in ((args[1], args[0], numbers[0]), (args[0], args[1], numbers[1])):
                if number == 1:
                    return a
                if number == -1:
                    return self.apply("negate", a)
                if number == 0:
                    return self.constant(0)
                if other.op == "negate" and number is None:
                    return self.apply("negate", self.apply("multiply", a, other.args[0]))
        elif op == "divide":
            if numbers[1] == 1:
                return args[0]
            if numbers[0] == 0:
                return self.constant(0)
        elif op == "negate" and args[0].op == "negate":
            return args[0].args[0]
        elif op == "where" and args[1] is args[2]:
            return args[1]
        return None

    def _node(self, op: str, args: tuple[Node, ...], data: Any, size: str | None, per_row: bool, is_condition: bool = False) -> Node:
        order = sorted(a.index for a in args) if op in ("add", "multiply", "maximum", "minimum") else [a.index for a in args]
        key = (op, tuple(order), data)
        if key not in self._known:
            self._known[key] = Node(self, len(self.nodes), op, args, data, size, per_row, is_condition)
            self.nodes.append(self._known[key])
        return self._known[key]


def needed_for(targets: Iterable[Node], available: Iterable[Node] = ()) -> list[Node]:
    """The nodes that the targets depend on, targets included, in the order of computation; not beyond what is available.

    Example:
        >>> from ember_mlx.step.graph import Graph, needed_for
        >>> graph = Graph()
        >>> a = graph.input("a")
        >>> needed_for([a * a + 1])
        [a, multiply(a, a), 1.0, add(multiply(a, a), 1.0)]
    """
    stop, found, waiting = {n.index for n in available}, {}, list(targets)
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            if node.index not in stop:
                waiting += node.args
    return [found[index] for index in sorted(found)]
