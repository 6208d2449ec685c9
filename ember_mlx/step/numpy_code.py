"""A step's graph as NumPy statements that work in place, in buffers which are used again once a value is dead.

Arrays are (D, n, H): directions, rows and units. What depends on neither units nor states is computed outside of these statements.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..scans.pointwise import ONE, erf
from .definition import Call, Definition
from .derivative import Form
from .graph import Node

FUNCTIONS = ("exp", "expm1", "log1p", "tanh", "sigmoid", "softplus", "sin", "cos", "sqrt", "erf", "divide")  # not to be computed twice
_UFUNCS = {"negate": "negative", "abs": "absolute"}


class Place(NamedTuple):
    """Where a value lies.

    Args:
        array: the name of an array (D, slots, n, H), or of one (D, n, H) where `slot` is None.
        slot: its slot there, the first where there are several.
        width: how many slots side by side.
    """

    array: str
    slot: int | None = None
    width: int = 1

    def __str__(self) -> str:
        if self.slot is None:
            return self.array
        return f"{self.array}_{self.slot}" if self.width == 1 else f"{self.array}_{self.slot}_{self.slot + self.width}"

    def part(self, rows: str) -> str:
        """It as a part of its array, of some rows or ("") of all."""
        slots = f"{self.slot}" if self.width == 1 else f"{self.slot}:{(self.slot or 0) + self.width}"
        return f"{self.array}[:, {slots}{rows and f', {rows}'}]"


class Gate(NamedTuple):
    """A result of a product that is used only as activation(x + W v), with an x that is used nowhere else.

    Args:
        x: number of the product with x.
        block: of the product's results.
        activation: "sigmoid", "tanh" or "" for none.
        total: the node x + W v.
        value: the node after the activation.
    """

    x: int
    block: int
    activation: str
    total: Node
    value: Node


def schedule(definition: Definition, targets: Iterable[Node], available: Iterable[Node]) -> list[Node]:
    """All nodes to be computed for the targets, arguments of products included, in the order of computation."""
    stop, found, waiting = {n.index for n in available}, {}, list(targets)
    while waiting:
        node = waiting.pop()
        if node.index in found or node.index in stop:
            continue
        found[node.index] = node
        if node.op == "product":
            call = definition.calls[node.data[0]]
            waiting += [call.argument, *call.results]
        waiting += node.args
    return [found[index] for index in sorted(found)]


def arguments_of(definition: Definition, node: Node) -> tuple[Node, ...]:
    """What a node is computed from, a product's argument included."""
    return (definition.calls[node.data[0]].argument,) if node.op == "product" else node.args


def kept_nodes(definition: Definition) -> list[Node]:
    """The values of the forward pass from which all coefficients follow without a function and without a product, beside the states."""
    stop = {n.index for n in (*definition.before, *definition.after)}
    forward = {n.index for n in definition.forward_nodes}
    found, waiting = {}, [*definition.pull.coefficients, *(call.argument for call in definition.calls)]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node.index in seen or node.index in stop or not node.is_full:
            continue
        seen.add(node.index)
        of_products = any(a.is_full and (a.op == "product" or a.op == "input") and a.index not in stop for a in node.args)
        is_costly = node.op in ("product", "input", *FUNCTIONS) or (of_products and not node.is_condition)
        of_states = bool(node.args) and all(a.index in stop or not a.is_full for a in node.args)  # as tanh(c'): memory costs more than it
        if is_costly and node.index in forward and not of_states:
            found[node.index] = node
        else:
            waiting += node.args
    return [found[index] for index in sorted(found)]


def gates_of(definition: Definition, kept: Sequence[Node]) -> dict[int, list[Gate]]:
    """Of each call whose weight is used once, the results that are gates, those of one activation side by side."""
    users: dict[int, list[Node]] = {}
    for node in definition.forward_nodes:
        for a in node.args:
            users.setdefault(a.index, []).append(node)
    names = [call.name for call in definition.calls]
    needed = {n.index for n in (*kept, *definition.after, *(call.argument for call in definition.calls))}

    def gate(result: Node) -> Gate | None:
        totals = users.get(result.index, [])
        if len(totals) != 1 or totals[0].op != "add":
            return None
        total = totals[0]
        x = next((k for k, n in enumerate(definition.x) if any(a is n for a in total.args)), None)
        if x is None or len(users[definition.x[x].index]) != 1 or needed & {result.index, definition.x[x].index}:
            return None
        others = users.get(total.index, [])
        alone = len(others) == 1 and total.index not in needed
        activation = others[0].op if alone and others[0].op in ("sigmoid", "tanh") else ""
        return Gate(x, result.data[1], activation, total, others[0] if activation else total)

    found = {}
    for c, call in enumerate(definition.calls):
        gates = [g for g in map(gate, call.results) if g is not None] if names.count(call.name) == 1 else []
        found[c] = _in_order(gates, definition.pull.results.get(c, []))
    return found


def _in_order(gates: list[Gate], forms: Sequence[Form]) -> list[Gate]:
    """Gates of one activation side by side, and at their borders those whose gradients are multiples of one variable."""

    def variable(gate: Gate) -> Any:
        return next(iter(forms[gate.block]), None)

    ordered: list[Gate] = []
    for activation in ("", "tanh", "sigmoid"):  # from the last to the first
        of = [g for g in gates if g.activation == activation]
        border = variable(ordered[0]) if ordered else None
        ordered = sorted(of, key=lambda g: (variable(g) == border, str(variable(g)))) + ordered
    return ordered


@dataclass
class Buffers:
    """The slots of memory that statements may use: "m", which lasts as long as a block of steps, and "t", as long as a step.

    Attributes:
        slots: how many slots there are, by array.
        free: those that hold nothing.
    """

    slots: dict[str, int] = field(default_factory=lambda: {"m": 0, "t": 0})
    free: dict[str, list[int]] = field(default_factory=lambda: {"m": [], "t": []})

    def take(self, arrays: Sequence[str]) -> Place:
        """A free slot of one of the arrays, or a new one of the first."""
        for array in arrays:
            if self.free[array]:
                return Place(array, self.free[array].pop(0))
        self.slots[arrays[0]] += 1
        return Place(arrays[0], self.slots[arrays[0]] - 1)

    def give(self, place: Place) -> None:
        """A slot whose value is dead."""
        if place.array in self.free and place.slot is not None:
            self.free[place.array].append(place.slot)


class Statements:
    """The statements that compute some nodes from others.

    Args:
        definition: of the step.
        places: node index -> where its value lies before the statements, and afterwards that of every computed node.
        owned: the places whose arrays may be overwritten once their values are dead.
        buffers: the memory.
        slots: call -> block of its results -> slot in its array of results.
    """

    def __init__(
        self, definition: Definition, places: dict[int, Place], owned: set[Place], buffers: Buffers, slots: Sequence[Sequence[int]]
    ):
        self.slots = slots
        self.definition, self.places, self.owned, self.buffers = definition, dict(places), set(owned), buffers
        self.lines: list[str] = []
        self.used: dict[Place, None] = {}

    def compute(self, targets: Sequence[tuple[Node, Place]], kept: Sequence[Node], gates: dict[int, list[Gate]]) -> None:
        """Add the statements for the targets, which go to their places, and for what is kept in the memory "m"."""
        definition, nodes = self.definition, self.definition.graph.nodes
        wanted = [*(node for node, _ in targets), *kept]
        order = schedule(definition, wanted, [nodes[k] for k in self.places])
        self.targets, self.kept = {node.index: place for node, place in reversed(targets)}, {n.index for n in kept}
        self.last = {a.index: at for at, node in enumerate(order) for a in arguments_of(definition, node)}
        for node in wanted:
            self.last[node.index] = len(order)
        self.users: dict[int, list[Node]] = {}
        for node in order:
            for a in arguments_of(definition, node):
                self.users.setdefault(a.index, []).append(node)
        self.reserved = set(self.places.values())
        done: set[int] = set()
        for at, node in enumerate(order):
            if node.index in done or not node.is_full:
                continue
            if node.op == "product":
                done |= self._product(definition.calls[node.data[0]], node.data[0], at)
            elif any(node.index in (g.total.index, g.value.index) for gs in gates.values() for g in gs):
                of_call = next(c for c, gs in gates.items() if any(node.index in (g.total.index, g.value.index) for g in gs))
                done |= self._gates(of_call, gates[of_call])
            else:
                self._pointwise(node, at)
        for node, place in targets:
            if self.places.get(node.index) != place:
                self.lines.append(f"np.copyto({place}, {self._name(node)})")
                self.used[place] = None

    def _product(self, call: Call, number: int, at: int) -> set[int]:
        argument = self._name(call.argument)
        self.lines.append(f"products[{call.name!r}]({argument}[:, None], q{number})")
        for n in call.results:
            place = Place(f"q{number}", self.slots[number][n.data[1]])
            self.places[n.index] = place
            self.owned.add(place)
            if n.index in self.kept:
                self.places[n.index] = self.buffers.take(("m",))
                self.lines.append(f"np.copyto({self.places[n.index]}, {place})")
                self.used |= {place: None, self.places[n.index]: None}
        self._release([call.argument], at)
        return {n.index for n in call.results}

    def _gates(self, call: int, gates: list[Gate]) -> set[int]:
        """Sums and activations of gates that lie side by side, those of one activation at once."""
        first = self.places[self.definition.x[gates[0].x].index].slot
        block = self.slots[call][gates[0].block]
        assert first is not None
        totals = Place("m", first, len(gates))
        self._call("add", [totals, Place(f"q{call}", block, len(gates))], totals)
        for activation in ("sigmoid", "tanh"):
            of = [k for k, g in enumerate(gates) if g.activation == activation]
            if of:
                part = Place("m", first + of[0], len(of))
                out = self.targets.get(gates[of[0]].value.index, part) if len(of) == 1 else part
                self._call(activation, [part], out if activation == "tanh" and gates[of[0]].value.index not in self.kept else part)
        for k, g in enumerate(gates):
            place = Place("m", first + k)
            self.places[g.total.index] = self.places[g.value.index] = place
            self.owned.add(place)
            is_alone = g.activation == "tanh" and len([o for o in gates if o.activation == "tanh"]) == 1
            if is_alone and g.value.index in self.targets and g.value.index not in self.kept:
                self.places[g.value.index] = self.targets[g.value.index]
        return {index for g in gates for index in (g.total.index, g.value.index)}

    def _call(self, name: str, given: Sequence[Place], out: Place) -> None:
        self.used |= dict.fromkeys((*given, out))
        self.lines.append(f"sigmoid_of_negative({out})" if name == "sigmoid" else f"np.{name}({', '.join(map(str, given))}, out={out})")

    def _pointwise(self, node: Node, at: int) -> None:
        names = [self._name(a) for a in node.args]
        if node.is_condition:
            place = Place(f"b{node.index}")
            self.places[node.index] = place
            self.lines.append(f"{place} = np.{node.op}({', '.join(names)})")
            self._release(node.args, at)
            return
        out = self._room(node, at)
        self.places[node.index] = out
        self.used[out] = None
        self.lines += self._statements(node, names, str(out))
        self._release(node.args, at, out)

    def _room(self, node: Node, at: int) -> Place:
        """Where to put a node's value: where it is wanted, in the place of a dying argument, or in a free slot."""
        if node.index in self.targets:
            return self.targets[node.index]
        keep = node.index in self.kept
        for a in node.args:
            place = self.places.get(a.index)
            if a.is_full and place in self.owned and self.last.get(a.index, -1) <= at and (not keep or place.array == "m"):
                return place
        place = None if keep else self._destination(node)
        if place is not None:
            return place
        place = self.buffers.take(("m",) if keep else ("t", "m"))
        self.owned.add(place)
        return place

    def _destination(self, node: Node) -> Place | None:
        """The place of the target that a node is a part of and nothing else, unless another part of that target is there."""
        while node.index not in self.targets:
            users = self.users.get(node.index, [])
            if len(users) != 1 or users[0].op in ("product", "where") or not users[0].is_full or users[0].is_condition:
                return None
            node = users[0]
        place = self.targets[node.index]
        if place in self.reserved:
            return None
        self.reserved.add(place)
        return place

    def _release(self, args: Iterable[Node], at: int, out: Place | None = None) -> None:
        for index in {a.index for a in args}:
            place = self.places.get(index)
            if place in self.owned and place != out and self.last.get(index, -1) <= at:
                self.buffers.give(place)

    def _name(self, node: Node) -> str:
        if node.op == "constant":
            return repr(node.data)
        if not node.is_full:
            return f"small[{node.index}]"
        place = self.places[node.index]
        if not node.is_condition:
            self.used[place] = None
        return str(place)

    @staticmethod
    def _statements(node: Node, names: list[str], out: str) -> list[str]:
        given = ", ".join(names)
        if node.op == "sigmoid":
            return [f"sigmoid_of_negative(np.negative({given}, out={out}))"]
        if node.op == "softplus":
            return [f"np.logaddexp(0.0, {given}, out={out})"]
        if node.op == "erf":
            return [f"{out}[...] = erf({given})"]
        if node.op == "where":
            ones = names[1:] == ["1.0", "0.0"]
            return [f"np.copyto({out}, {names[0]})" if ones else f"{out}[...] = np.where({given})"]
        return [f"np.{_UFUNCS.get(node.op, node.op)}({given}, out={out})"]


def function(
    name: str, arguments: str, statements: Sequence[str], places: Iterable[Place], of_rows: Sequence[str] = ()
) -> Callable[..., None]:
    """A function of these statements; places with slots become names of parts of their arrays.

    Those of the arrays `of_rows` are parts of the argument `rows` too.
    """
    parts = [f"{place} = {place.part('rows' if place.array in of_rows else '')}" for place in places if place.slot is not None]
    source = "\n    ".join([f"def {name}({arguments}):", *parts, *(statements or ["pass"])])
    made: dict[str, Any] = {"np": np, "erf": erf, "sigmoid_of_negative": _sigmoid_of_negative}
    exec(compile(source, f"<{name}>", "exec"), made)
    made[name].source = source
    result: Callable[..., None] = made[name]
    return result


def _sigmoid_of_negative(a: Any) -> None:
    np.exp(a, out=a)
    a += ONE[a.dtype]
    np.reciprocal(a, out=a)
