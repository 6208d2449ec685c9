"""How the NumPy form of a cell's scan computes a step and its derivative: statements made from the graph, once for each cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...step.definition import Definition
from ...step.derivative import Form, Variable
from ...step.graph import Node
from ...step.numpy_code import Buffers, Place, Statements, arguments_of, function, gates_of, kept_nodes, schedule

Run = Callable[..., None]


class Plan:
    """The statements of a cell.

    ``early`` computes for a block of steps what does not depend on the states, in the memory m (D, slots, N, H), which holds the products
    with x first; ``step`` one step, from a part of it; ``again`` for a block of steps what ``step`` leaves in m, from the states;
    ``linearise`` the coefficients of the derivative; ``pull`` one step backward.

    Attributes:
        x_order: the products with x as they lie in m.
        x_factors: what each is multiplied by, in the order of the cell.
        orders: call -> the blocks of its results as they lie in memory.
        factors: call -> what each block is multiplied by.
        slots: how many m has.
        temporary: how many arrays a step needs beside m.
        kept: slots of the values that ``linearise`` takes, after ``step``.
        made_again: the same after ``again``.
        small: nodes that are not (B, H), computed outside.
        arguments: call -> where its argument lies for a block of steps: ("before", k), ("after", k), ("kept", i) or ("made", j).
    """

    def __init__(self, definition: Definition):
        self.definition = definition
        kept = kept_nodes(definition)
        self.gates = gates_of(definition, kept)
        self._order_blocks()
        self.early_nodes = _early(definition)
        frontier = self._frontier(kept)
        buffers, places = Buffers(), {n.index: Place("m", self.x_order.index(k)) for k, n in enumerate(definition.x)}
        buffers.slots["m"] = len(definition.x)
        lasting = {n.index for n in (*frontier, *kept)}
        owned = {places[n.index] for n in definition.x if n.index not in lasting}
        early = Statements(definition, places, owned, buffers, self.slots_of_calls)
        early.compute([], [n for n in frontier if n.op != "input"], {})
        free = [places[n.index] for n in definition.x if n.index not in lasting and places[n.index] not in early.used]
        for place in free:
            buffers.give(place)
        self.is_early_needed = bool(early.lines)
        self.early = function("early", "m, t, small", early.lines, early.used)
        self._make_steps(kept, {n.index: early.places[n.index] for n in frontier}, buffers)
        self._make_derivative(kept)

    def _order_blocks(self) -> None:
        definition, first = self.definition, [g.x for gates in self.gates.values() for g in gates]
        self.x_order = first + [k for k in range(len(definition.x)) if k not in first]
        self.x_factors, self.orders, self.factors = [1.0] * len(definition.x), {}, {}
        for c, call in enumerate(definition.calls):
            blocks = [g.block for g in self.gates[c]]
            self.orders[c] = blocks + [b for b in range(len(call.results)) if b not in blocks]
            self.factors[c] = [1.0] * len(call.results)
            for g in self.gates[c]:
                if g.activation == "sigmoid":  # sigma(a) = 1 / (1 + exp(-a))
                    self.x_factors[g.x] = self.factors[c][g.block] = -1.0
        self.slots_of_calls = [[self.orders[c].index(b) for b in range(len(call.results))] for c, call in enumerate(definition.calls)]

    def _frontier(self, kept: Sequence[Node]) -> list[Node]:
        """What is computed before the states are known and needed afterwards."""
        definition, early = self.definition, self.early_nodes
        wanted = [*definition.after, *(call.argument for call in definition.calls), *kept]
        nodes = definition.graph.nodes
        late = schedule(definition, wanted, [*definition.before, *(nodes[k] for k in early)])
        used = [*wanted, *(a for n in late for a in arguments_of(definition, n))]
        return [nodes[k] for k in sorted({n.index for n in used if n.index in early and n.is_full})]

    def _make_steps(self, kept: Sequence[Node], frontier: dict[int, Place], buffers: Buffers) -> None:
        definition = self.definition
        before = {n.index: Place(f"before{k}") for k, n in enumerate(definition.before)}
        after = {n.index: Place(f"after{k}") for k, n in enumerate(definition.after)}
        needed = {n.index for n in kept}
        late = [n for n in kept if n.index not in frontier]
        owned = {place for index, place in frontier.items() if index not in needed}
        made = []
        for is_step in (True, False):
            own = Buffers(dict(buffers.slots), {name: list(free) for name, free in buffers.free.items()})
            given = before | frontier | ({} if is_step else after)
            statements = Statements(definition, given, owned, own, self.slots_of_calls)
            targets = [(n, Place(f"after{k}")) for k, n in enumerate(definition.after)] if is_step else []
            statements.compute(targets, late, self.gates)
            made.append((statements, own))
        (step, of_step), (again, of_again) = made
        results = [f"q{c}" for c in range(len(definition.calls))]
        arguments = ", ".join(["m", "rows", "t", "small", "products", *results, *self._states()])
        self.step = function("step", arguments, step.lines, step.used, ("m",))
        self.again = function("again", arguments, again.lines, again.used, ("m",))
        self.is_again_needed = bool(again.lines)
        self.slots, self.temporary = (max(of_step.slots[name], of_again.slots[name]) for name in ("m", "t"))
        self.kept, self.made_again = ([s.places[n.index].slot for n in kept] for s in (step, again))

    def _states(self) -> list[str]:
        """The arguments for the states before and after a step."""
        return [f"{when}{k}" for when in ("before", "after") for k in range(len(self.definition.states))]

    def _make_derivative(self, kept: Sequence[Node]) -> None:
        definition = self.definition
        at_hand = {n.index: ("before", k) for k, n in enumerate(definition.before)} | {n.index: ("kept", k) for k, n in enumerate(kept)}
        blocks = Blocks(definition, self.orders, at_hand)
        self.blocks, self.pull = blocks, blocks.function()
        places = {n.index: Place(f"before{k}") for k, n in enumerate(definition.before)}
        places |= {n.index: Place(f"after{k}") for k, n in enumerate(definition.after)}
        places |= {n.index: Place("kept", k) for k, n in enumerate(kept)}
        targets = [(n, Place("c", slot)) for slot, n in enumerate(blocks.coefficients)]
        self.arguments: dict[int, tuple[str, int]] = {}
        made: list[tuple[Node, Place]] = []
        for c, call in enumerate(definition.calls):
            place = places.get(call.argument.index)
            if place is None:
                self.arguments[c] = ("made", len(made))
                made.append((call.argument, Place("u", len(made))))
            elif place.array == "kept":
                self.arguments[c] = ("kept", place.slot or 0)
            else:
                kind = "before" if place.array.startswith("before") else "after"
                self.arguments[c] = (kind, int(place.array.removeprefix(kind)))
        self.made_arguments = len(made)
        buffers = Buffers()
        statements = Statements(definition, places, set(), buffers, self.slots_of_calls)
        statements.compute([*targets, *made], [], {})
        self.linearise_temporary = buffers.slots["t"]
        used = {place: None for place in statements.used if place.array != "kept"}
        kept_names = [f"kept_{k} = kept[{k}]" for k in range(len(kept))]
        arguments = ", ".join(["c", "u", "t", "kept", "small", *self._states()])
        self.linearise = function("linearise", arguments, [*kept_names, *statements.lines], used)
        wanted = schedule(definition, [*definition.forward_nodes, *definition.pull.coefficients], [])
        self.small = [n for n in wanted if not n.is_full and n.op != "constant"]


@lru_cache(maxsize=256)
def plan_of(definition: Definition) -> Plan:
    """The plan of a cell; made once."""
    return Plan(definition)


def _early(definition: Definition) -> set[int]:
    """The nodes that depend on no state and on no product with one."""
    early: set[int] = set()
    states = {n.index for n in definition.before}
    for node in definition.forward_nodes:
        is_leaf = node.op in ("input", "constant")
        depends = node.op == "product" or node.index in states
        if not depends and (is_leaf or all(a.index in early or _is_early_condition(a, early) for a in node.args)) and not node.is_condition:
            early.add(node.index)
    return early


def _is_early_condition(node: Node, early: set[int]) -> bool:
    return node.is_condition and all(a.index in early for a in node.args)


@dataclass
class Item:
    """A statement of the pull: a form that goes to a sum, to a block of gradients or to a state, or a product."""

    kind: str  # "sum", "block", "back", "state"
    number: int
    form: Form
    array: str = "d"  # of a block


class Blocks:
    """The gradients that a step backward writes, d (D, blocks, n, H), and their coefficients.

    Those of products' results of another size P are in an array p (D, blocks, n, P) of their own.

    Attributes:
        of_calls: call -> its array and the slice of its blocks.
        of_inputs: node index of x, a parameter or dt -> its block, or None where its gradient is 0.
        coefficients: the coefficients that lie in memory, in the order of their slots.
        at_hand: those that are values of the forward pass: ("before" or "kept", which).
    """

    def __init__(self, definition: Definition, orders: dict[int, list[int]], at_hand: dict[int, tuple[str, int]]):
        self.definition, pull = definition, definition.pull
        self.of_calls: dict[int, tuple[str, slice]] = {}
        self.of_inputs: dict[int, int | None] = {}
        self.items: list[Item] = []
        known: dict[Any, int] = {}
        count = others = 0
        states = [n.index for n in definition.before]
        for kind, number in pull.order:
            if kind == "sum":
                self.items.append(Item("sum", number, pull.sums[number]))
                continue
            array = "d" if definition.sizes[definition.calls[number].name] == "H" else "p"
            first = count if array == "d" else others
            self.of_calls[number] = array, slice(first, first + len(orders[number]))
            for at, block in enumerate(orders[number], first):
                form = pull.results[number][block]
                if array == "d":
                    known.setdefault(_key(form), at)
                self.items.append(Item("block", at, form, array))
            count, others = (self.of_calls[number][1].stop, others) if array == "d" else (count, self.of_calls[number][1].stop)
            self.items.append(Item("back", number, {}))
        for index in [n.index for n in (*definition.x, *definition.parameters.values())] + (
            [] if definition.dt is None else [definition.dt.index]
        ):
            form = pull.inputs.get(index, {})
            if not form:
                self.of_inputs[index] = None
                continue
            if _key(form) not in known:
                known[_key(form)] = count
                self.items.append(Item("block", count, form))
                count += 1
            self.of_inputs[index] = known[_key(form)]
        self.items += [Item("state", k, pull.inputs.get(index, {})) for k, index in enumerate(states)]
        self.count, self.others = count, others
        found: dict[int, Node] = {}
        for item in self.items:
            for coefficient in item.form.values():
                if coefficient.is_full:
                    found.setdefault(coefficient.index, coefficient)
        self.at_hand = {index: at_hand[index] for index in found if index in at_hand}
        found = {index: n for index, n in found.items() if index not in at_hand}
        self.coefficients = list(found.values())
        self.slot = {index: slot for slot, index in enumerate(found)}

    def function(self) -> Run:
        """pull(c, d, t, small, back, s0, s1, ...): the gradients of the states (D, n, H) become those of the states before, in place."""
        lines = PullStatements(self)
        states = ", ".join(f"s{k}" for k in range(len(self.definition.states)))
        self.temporary = lines.temporary
        given = "".join(f", given{j}" for j in range(len(self.at_hand)))
        return function("pull", f"c, d, p, rows, t, small, back, {states}{given}", lines.lines, lines.used, ("c", "d", "p"))


class PullStatements:
    """The statements of a step backward."""

    def __init__(self, blocks: Blocks):
        self.blocks, self.lines, self.used = blocks, [], {}  # type: ignore[var-annotated]
        self.temporary, self.free = 0, []  # type: ignore[var-annotated]
        self.place: dict[Variable, str] = {("state", k): f"s{k}" for k in range(len(blocks.definition.states))}
        self.uses: dict[Variable, int] = {}
        for item in blocks.items:
            for variable in item.form:
                self.uses[variable] = self.uses.get(variable, 0) + 1
        self.later: list[tuple[str, str]] = []
        waiting = list(blocks.items)
        while waiting:
            run = self._run_of_blocks(waiting)
            if len(run) > 1:
                self._blocks(run)
                waiting = waiting[len(run) :]
            else:
                self._item(waiting.pop(0))
        self.lines += [f"np.copyto({state}, {name})" for state, name in self.later]

    def _run_of_blocks(self, waiting: list[Item]) -> list[Item]:
        """The first items that are one multiplication: blocks and coefficients side by side, of one variable."""
        run: list[Item] = []
        for item in waiting:
            if item.kind != "block" or len(item.form) != 1 or item.array != "d":
                break
            ((variable, coefficient),) = item.form.items()
            slot = self.blocks.slot.get(coefficient.index)
            if slot is None:
                break
            if run:
                ((first, before),) = run[-1].form.items()
                if first != variable or slot != self.blocks.slot[before.index] + 1 or item.number != run[-1].number + 1:
                    break
            run.append(item)
        return run

    def _blocks(self, run: list[Item]) -> None:
        ((variable, first),) = run[0].form.items()
        slot, block, count = self.blocks.slot[first.index], run[0].number, len(run)
        factors, into = Place("c", slot, count), Place("d", block, count)
        self.used |= {factors: None, into: None}
        self.lines.append(f"np.multiply({factors}, {self.place[variable]}[:, None], out={into})")
        self._used_up([variable] * count)

    def _item(self, item: Item) -> None:
        if item.kind == "back":
            variable = ("call", item.number)
            place = self._for_call(variable)
            array, blocks = self.blocks.of_calls[item.number]
            name = self.blocks.definition.calls[item.number].name
            gradients = Place(array, blocks.start, blocks.stop - blocks.start)
            self.used[gradients] = None
            self.lines.append(f"back[{name!r}]({gradients}{'[:, None]' if gradients.width == 1 else ''}, {place})")
            self.place[variable] = place
            return
        if item.kind == "block":
            self._form(item.form, self._part(item.array, item.number))
        elif item.kind == "sum":
            variables = [v for v in item.form if self.uses[v] == 1 and v in self.place]
            place = self.place[variables[0]] if variables else self._temporary()
            self._form(item.form, place)
            self.place = {v: where for v, where in self.place.items() if where != place}
            self.place["sum", item.number] = place
        else:
            self._state(item)

    def _state(self, item: Item) -> None:
        own = f"s{item.number}"
        holder = next((v for v, place in self.place.items() if place == own), None)
        if holder is not None and self.uses.get(holder, 0) > (1 if holder in item.form else 0):
            place = self._temporary()
            self._form(item.form, place)
            self.later.append((own, place))
            self.free = [name for name in self.free if name != place]
        else:
            self._form(item.form, own)

    def _for_call(self, variable: Variable) -> str:
        """Where a product sends its result: to the state of which it is the gradient, if that has been used up."""
        for item in self.blocks.items:
            if item.kind == "state" and variable in item.form and self.uses[variable] == 1:
                own = f"s{item.number}"
                holders = [v for v, place in self.place.items() if place == own and self.uses.get(v, 0) > 0]
                if not holders:
                    self.place = {v: place for v, place in self.place.items() if place != own}
                    return own
        return self._temporary()

    def _form(self, form: Form, place: str) -> None:
        if not form:
            self.lines.append(f"{place}[...] = 0")
            return
        terms = sorted(form.items(), key=lambda term: self.place[term[0]] != place)
        for k, (variable, coefficient) in enumerate(terms):
            name, factor = self.place[variable], self._factor(coefficient)
            if k == 0 and factor is None:
                self.lines += [] if name == place else [f"np.copyto({place}, {name})"]
            elif k == 0:
                self.lines.append(f"np.multiply({factor}, {name}, out={place})")
            elif factor is None:
                self.lines.append(f"np.add({place}, {name}, out={place})")
            else:
                rest = self._temporary()
                self.lines.append(f"np.multiply({factor}, {name}, out={rest})")
                self.lines.append(f"np.add({place}, {rest}, out={place})")
                self.free.append(rest)
        self._used_up(list(form), place)

    def _factor(self, coefficient: Node) -> str | None:
        if coefficient.op == "constant":
            return None if coefficient.data == 1 else repr(coefficient.data)
        if not coefficient.is_full:
            return f"small[{coefficient.index}]"
        if coefficient.index in self.blocks.at_hand:
            return f"given{list(self.blocks.at_hand).index(coefficient.index)}"
        return self._part("c", self.blocks.slot[coefficient.index])

    def _part(self, array: str, slot: int) -> str:
        place = Place(array, slot)
        self.used[place] = None
        return str(place)

    def _temporary(self) -> str:
        if self.free:
            return str(self.free.pop())
        self.temporary += 1
        return self._part("t", self.temporary - 1)

    def _used_up(self, variables: Sequence[Variable], out: str = "") -> None:
        for variable in variables:
            self.uses[variable] -= 1
            place = self.place.get(variable)
            if self.uses[variable] == 0 and place is not None and place != out and place.startswith("t_"):
                self.free.append(place)
                del self.place[variable]


def _key(form: Form) -> Any:
    return tuple(sorted((variable, coefficient.index) for variable, coefficient in form.items()))
