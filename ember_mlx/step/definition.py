"""A cell's step as a graph, checked."""

import inspect
import linecache
import traceback
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import bad_argument
from .cell import Cell, check_counts
from .derivative import Pull, derive
from .graph import Graph, Node, StepError, kind_of, needed_for


@dataclass(frozen=True, eq=False)
class Call:
    """A product with a hidden value.

    Args:
        name: of the weight.
        argument: the value, (B, H).
        results: W v, in blocks of H.
        stage: 0 where it needs no other product's result, else one more than the latest that it needs.
    """

    name: str
    argument: Node
    results: tuple[Node, ...]
    stage: int


class Definition:
    """What a step computes.

    Attributes:
        name: of the cell.
        states: their names.
        sizes: of states and of the results of products: "H", or another that the cell names.
        x: the results of the products with the inputs.
        h_products: weight -> its blocks.
        parameters: name -> node.
        shared: names of the parameters that are one number.
        dt: the elapsed time, or None.
        before: the states before the step.
        after: the states after it.
        calls: the products with hidden values, in order.
    """

    def __init__(self, cell: Cell):
        self.name, self.states, self.h_products = type(cell).__name__, tuple(cell.states), dict(cell.h_products)
        self.graph = graph = Graph()
        parameters = cell.all_parameters
        self.shared = tuple(name for name, p in parameters.items() if p.shared)
        self.sizes = {name: cell.sizes.get(name, "H") for name in (*self.states, *self.h_products)}
        # names that no state or parameter can have
        self.x = tuple(graph.input(f"x[{k}]" if cell.x_products > 1 else "x") for k in range(cell.x_products))
        self.before = tuple(graph.input(name, self.sizes[name]) for name in self.states)
        self.parameters = {name: graph.input(name, None if p.shared else "H", per_row=False) for name, p in parameters.items()}
        self.dt: Node | None = None
        self.after: tuple[Node, ...] = ()
        self.calls: list[Call] = []

    @cached_property
    def signature(self) -> tuple[Any, ...]:
        """The step in values that can be compared: cells with the same one share their kernels."""
        nodes = tuple((n.op, tuple(a.index for a in n.args), n.data) for n in self.forward_nodes)
        calls = tuple((call.name, call.argument.index) for call in self.calls)
        return (
            self.name,
            self.states,
            len(self.x),
            tuple(self.h_products.items()),
            tuple(self.sizes.items()),
            self.shared,
            nodes,
            calls,
            tuple(n.index for n in self.after),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Definition) and self.signature == other.signature

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.signature)

    def __repr__(self) -> str:
        return f"Definition({self.name})"

    @cached_property
    def forward_nodes(self) -> list[Node]:
        """All nodes that the next states depend on, arguments of products included, in the order of computation."""
        return needed_for([*self.after, *(call.argument for call in self.calls)])

    @cached_property
    def weights(self) -> dict[str, tuple[int, str, str]]:
        """Each product's weight: how many blocks, the size of its results and that of its argument."""
        arguments = {call.name: call.argument.size or "H" for call in self.calls}
        return {name: (count, self.sizes[name], arguments[name]) for name, count in self.h_products.items()}

    @property
    def depth(self) -> int:
        """How many products follow one another in a step."""
        return max((call.stage + 1 for call in self.calls), default=0)

    @property
    def is_timed(self) -> bool:
        """Whether a step depends on the elapsed time."""
        return self.dt is not None

    @cached_property
    def pull(self) -> Pull:
        """Its derivative."""
        return derive(self)


def define(cell: Cell) -> Definition:
    """The definition of a cell.

    Raises:
        ValueError, TypeError: what the step does cannot be expressed, or the cell's attributes do not fit it; the message has the line.
    """
    owner = type(cell).__name__
    check_counts(owner, cell)
    definition = Definition(cell)
    arguments = _arguments(owner, cell, definition)
    definition.graph.file = inspect.unwrap(type(cell).step).__code__.co_filename
    try:
        result = cell.step(**arguments)
    except Exception as error:
        raise _located(owner, cell, error) from error
    definition.graph.file = None
    results = result if isinstance(result, (tuple, list)) else (result,)
    if len(results) != len(definition.states):
        expected = f"return {len(definition.states)} value{'s' * (len(definition.states) > 1)}: {', '.join(definition.states)}"
        raise bad_argument(owner, "step", expected, len(results))
    try:
        definition.after = tuple(map(definition.graph.as_node, results))
    except StepError as error:
        others = [kind_of(each) for each in results if not isinstance(each, (Node, int, float))]
        raise bad_argument(owner, "step", "return values of the step", ", ".join(others) or f"what is none: {error}") from error
    _check_results(owner, cell, definition)
    try:
        definition.pull  # noqa: B018 - its numbers can be too large for a float
    except StepError as error:
        raise bad_argument(owner, "step", "have a derivative", f"{error}") from error
    return definition


def _arguments(owner: str, cell: Cell, definition: Definition) -> dict[str, Any]:
    """What the step is called with, by name."""
    known: dict[str, Any] = {"x": definition.x[0] if len(definition.x) == 1 else definition.x}
    known |= dict(zip(definition.states, definition.before, strict=True)) | definition.parameters
    known |= {name: _product(definition, name, count) for name, count in cell.h_products.items()}
    asked = inspect.signature(cell.step).parameters
    for name, parameter in asked.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise bad_argument(owner, "step", "name each of its arguments", str(parameter))
        if name == "dt":
            definition.dt = known["dt"] = definition.graph.input("dt", None)
        if name not in known and parameter.default is parameter.empty:
            raise bad_argument(
                owner, "step", f"have no other arguments than {', '.join([*known, *['dt'] * ('dt' not in known)])}", repr(name)
            )
    for name in known:
        if name not in asked and name not in definition.states:
            kind = {"x": "x"}.get(name, "the product" if name in cell.h_products else "the parameter")
            raise bad_argument(owner, "step", f"use {f'{kind} {name!r}' if name != 'x' else 'x'}", f"arguments {', '.join(asked)}")
    return {name: known[name] for name in asked if name in known}


def _product(definition: Definition, name: str, count: int) -> Any:
    """W as the step gets it."""

    def product(value: Any) -> Any:
        node = definition.graph.as_node(value)
        if node.is_condition:
            raise StepError(f"{name} takes numbers, got a comparison; where(condition, a, b) makes numbers of one")
        if not node.is_full:
            raise StepError(f"{name} takes a value of shape (B, H), got {node.shape}")
        taken = {call.argument.size for call in definition.calls if call.name == name}
        if taken and node.size not in taken:
            raise StepError(f"{name} takes values of one shape, got {node.shape} after (B, {taken.pop()})")
        for call in definition.calls:
            if call.name == name and call.argument is node:
                return call.results if count > 1 else call.results[0]
        stages = [definition.calls[n.data[0]].stage + 1 for n in needed_for([node]) if n.op == "product"]
        results = tuple(definition.graph.product(len(definition.calls), block, definition.sizes[name]) for block in range(count))
        definition.calls.append(Call(name, node, results, max(stages, default=0)))
        return results if count > 1 else results[0]

    return product


def _check_results(owner: str, cell: Cell, definition: Definition) -> None:
    """Raise an error for states that are not written, and for what is not used."""
    for name, before, after in zip(definition.states, definition.before, definition.after, strict=True):
        if after.is_condition or not after.is_full or after.size != before.size:
            got = "a comparison" if after.is_condition else f"{after.shape}: {after}"
            raise bad_argument(owner, f"state {name!r}", f"be returned as a value of shape {before.shape}", got)
        if after is before:
            raise bad_argument(owner, f"state {name!r}", "be written by the step", "the state before it, unchanged")
    used = {n.index for n in needed_for(definition.after)}
    reached = {n.data[0] for n in needed_for(definition.after) if n.op == "product"}
    waiting = list(reached)
    while waiting:  # what the products' arguments depend on
        for n in needed_for([definition.calls[waiting.pop()].argument]):
            used.add(n.index)
            if n.op == "product" and n.data[0] not in reached:
                reached.add(n.data[0])
                waiting.append(n.data[0])
    for k, node in enumerate(definition.x):
        if node.index not in used:
            raise bad_argument(owner, "step", f"use x{f'[{k}]' if len(definition.x) > 1 else ''}", "next states that do not depend on it")
    for name, node in definition.parameters.items():
        if node.index not in used:
            raise bad_argument(owner, "step", f"use the parameter {name!r}", "next states that do not depend on it")
    for k, call in enumerate(definition.calls):
        unused = [b for b, node in enumerate(call.results) if node.index not in used]
        if k not in reached or unused:
            part = "" if k not in reached or len(call.results) == 1 else f"[{unused[0]}]"
            raise bad_argument(
                owner, "step", f"use the result of {call.name}({call.argument}){part}", "next states that do not depend on it"
            )
    for name in cell.h_products:
        if name not in {call.name for call in definition.calls}:
            raise bad_argument(owner, "step", f"use the product {name!r}", "a step that does not call it")
    if definition.dt is not None and definition.dt.index not in used:
        raise bad_argument(owner, "step", "use dt, where it is an argument", "next states that do not depend on it")


def _located(owner: str, cell: Cell, error: Exception) -> Exception:
    """An error of the step, with the line in which it arose."""
    file = inspect.unwrap(type(cell).step).__code__.co_filename
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not frames:
        return bad_argument(owner, "step", "be a function of the values that it names", f"{type(error).__name__}: {error}")
    line = frames[-1].line or linecache.getline(file, frames[-1].lineno or 0).strip()
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"[{owner}] step, line {frames[-1].lineno}, `{line}`: {_explained(error)}.")


def _explained(error: Exception) -> str:
    """An error of the step in words; Python, NumPy and MLX call its values by the name of their class."""
    if "Node" in str(error) and not isinstance(error, StepError):
        return "a value takes only + - * / and ** by a small integer, comparisons, and the functions of ember_mlx.step"
    return f"{error}" if isinstance(error, StepError) else f"{type(error).__name__}: {error}".rstrip(".")
