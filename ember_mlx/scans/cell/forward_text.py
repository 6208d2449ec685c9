"""The forward scan of a cell as kernel text."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import NamedTuple

from ...kernels.loader import KernelText, axes
from ...step.definition import Definition
from ...step.graph import LEAVES, Node, needed_for
from ...step.metal import marks, statements
from .kernel_plan import UNITS, Plan, Size, plan_of, size_of
from .lines import (
    BARRIER,
    Reading,
    declare,
    declare_values,
    for_units,
    for_values,
    function,
    indented,
    kernel_text,
    read_ahead,
    read_now,
    writes,
)

FILES = ("pointwise.metal", "cell_pointwise.metal", "product.metal", "sequences.metal", "cell.metal")
MOST_AHEAD = 16  # values of a lane that wait in registers for the next step


def template_of(plan: Plan) -> str:
    """The parameters of a scan's function."""
    return f"{', '.join(f'int {size.letter}' for size in plan.sizes)}, int THREADS, int ROWS, int SPLIT, bool RESIDENT"


def arguments_of(plan: Plan) -> str:
    """What stands for them where it is called."""
    return f"{', '.join(size.letter for size in plan.sizes)}, THREADS, ROWS, SPLIT, RESIDENT"


def tiles_of(plan: Plan) -> list[str]:
    """How values of each size lie on the threadgroup."""
    return [f"typedef CellTile<{size.letter}, THREADS, ROWS, SPLIT> {size.tile};" for size in plan.sizes]


class Owned(NamedTuple):
    """A result that its lane makes more of before the others get it: act(x + W v), where it is used as nothing else.

    Args:
        node: act(x + W v).
        total: x + W v.
        x: the number of x.
    """

    node: Node
    total: Node
    x: int


class Forward:
    """The text of a definition's forward scan.

    A step is a part before the products of stage 0, and one behind those of each stage: it makes the arguments of the next one, in the end
    the states.
    """

    def __init__(self, plan: Plan):
        self.plan, self.definition = plan, plan.definition
        self.names: dict[int, str] = {}  # node index -> what it is called, where it is an array
        self._name_inputs()
        self._name_results()

    def _name_inputs(self) -> None:
        definition = self.definition
        self.names |= {node.index: f"x{k}[i]" for k, node in enumerate(definition.x)}
        self.names |= {node.index: f"s{k}[i]" for k, node in enumerate(definition.before)}
        self.names |= {node.index: f"p{k}[block]" for k, node in enumerate(definition.parameters.values())}
        if definition.dt is not None:
            self.names[definition.dt.index] = "dt[r]"

    def _name_results(self) -> None:
        for c, call in enumerate(self.definition.calls):
            for p in self.plan.parts_of(call):
                part = self.plan.parts[p]
                for k in range(part.blocks):
                    b = part.first + k
                    owned = self.owned.get((c, b))
                    node = owned.node if owned else call.results[b]
                    self.names[node.index] = f"q{c}_{p}[{part.blocks} * i + {k}]" if part.blocks > 1 else f"q{c}_{p}[i]"

    @cached_property
    def owned(self) -> dict[tuple[int, int], Owned]:
        """(call, block) -> what its lane makes of it."""
        definition, users = self.definition, self._users()
        numbers = {node.index: k for k, node in enumerate(definition.x)}
        found = {}
        for c, call in enumerate(definition.calls):
            for b, result in enumerate(call.results):
                (total, *more) = users.get(result.index, [None])
                if total is None or more or total.op != "add":
                    continue
                x = next((numbers[a.index] for a in total.args if a.index in numbers), None)
                (act, *more) = users.get(total.index, [None])
                if x is None or act is None or more or act.op not in ("tanh", "sigmoid"):
                    continue
                if any(self.plan.parts[p].blocks > 1 and b in _blocks(self.plan, p) for p in self.plan.parts_of(call)):
                    found[c, b] = Owned(act, total, x)
        return found

    def _users(self) -> dict[int, list[Node]]:
        """The nodes that use a node; those that leave the step count once more."""
        users: dict[int, list[Node]] = {}
        for node in self.definition.forward_nodes:
            for a in node.args:
                users.setdefault(a.index, []).append(node)
        for node in [*self.definition.after, *(call.argument for call in self.definition.calls)]:
            users.setdefault(node.index, []).append(node)
        return users

    # What is computed where

    @cached_property
    def targets(self) -> list[list[Node]]:
        """Of each part of a step."""
        stages = [[self.plan.arguments[a] for a in self.plan.stage_arguments(s)] for s in range(self.definition.depth)]
        return [*stages, list(self.definition.after)]

    def _needed(self, targets: Iterable[Node], stop: Iterable[int]) -> list[Node]:
        graph = self.definition.graph
        return needed_for(targets, [graph.nodes[k] for k in stop])

    @cached_property
    def constant(self) -> list[Node]:
        """What depends on parameters alone and is used by other nodes: computed once."""
        candidates = {n.index for n in self.definition.forward_nodes if not n.per_row and n.op not in LEAVES}
        targets = [node for part in self.targets for node in part]
        return [n for n in self._needed(targets, [*self.names, *candidates]) if n.index in candidates and n.index not in self.names]

    @cached_property
    def kept(self) -> dict[int, str]:
        """What a part of a step computes and a later one needs."""
        known = {*self.names, *(n.index for n in self.constant)}
        made: dict[int, int] = {}
        kept: dict[int, str] = {}
        for number, targets in enumerate(self.targets):
            for node in self._needed(targets, [*known, *made]):
                if made.setdefault(node.index, number) < number and node.op != "constant":
                    kept[node.index] = f"v{node.index}[i]"
        return {index: name for index, name in kept.items() if index not in known}

    @cached_property
    def xs(self) -> list[int]:
        """The numbers of x that every lane reads."""
        targets = [node for part in self.targets for node in part]
        read = {n.index for n in self._needed(targets, [o.node.index for o in self.owned.values()])}
        return [k for k, node in enumerate(self.definition.x) if node.index in read]

    @cached_property
    def owners(self) -> list[tuple[int, int]]:
        """(call, part) whose results their lanes make more of."""
        pairs = [(c, p) for c, call in enumerate(self.definition.calls) for p in self.plan.parts_of(call)]
        return [(c, p) for c, p in pairs if any((c, b) in self.owned for b in _blocks(self.plan, p))]

    # The text

    @property
    def arrays(self) -> list[tuple[str, str, str]]:
        """The inputs: name, type, what it holds."""
        definition, count = self.definition, len(self.definition.x)
        found = [("x_proj", "const float", f"(D, T, B, {count}, H)")]
        if definition.dt is not None:
            found.append(("times", "const float", "(D, T, B)"))
        if definition.parameters:
            found.append(("parameters", "const float", f"(D, {len(definition.parameters)}, H)"))
        if definition.calls:
            found.append(("weights", "const float", "D times packed, one product after the other"))
        found += [(f"initial{k}", "const float", f"(D, B, {size.letter})") for k, size in enumerate(self.states)]
        return [*found, ("lengths", "const int", "(B)"), ("dims", "const int", "T, B")]

    @property
    def outputs(self) -> list[tuple[str, str, str]]:
        """The states after each step."""
        return [(f"after{k}", "float", f"(D, T, B, {size.letter})") for k, size in enumerate(self.states)]

    @cached_property
    def states(self) -> list[Size]:
        """The sizes of the states."""
        return [size_of(node) for node in self.definition.before]

    def text(self) -> str:
        """The kernel's function."""
        body = [*self._opening(), *self._products(), *self._constants(), *self._first(), *self._steps(), *self._closing()]
        return function(template_of(self.plan), ["The forward scan."], [*self.arrays, *self.outputs], body)

    def _opening(self) -> list[str]:
        ahead = len(self.xs) + len(self.owners) + self.definition.is_timed
        return [
            *tiles_of(self.plan),
            f"enum {{ AHEAD = RESIDENT && {ahead} * C::COUNT <= {MOST_AHEAD} }};",
            "CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);",
            "int group = thread_index / SPLIT, part = thread_index % SPLIT;",
        ]

    @property
    def buffers(self) -> int:
        """How many of each argument: with one product a step, it is written beside what others still read."""
        return 2 if self.definition.depth == 1 else 1

    def _rows(self, count: int) -> Counter[str]:
        """Rows of the first arguments by the tile of their size."""
        return Counter([size_of(node).tile for node in self.plan.arguments[:count] for _ in range(self.buffers)])

    def _floats(self, count: int) -> str:
        """How many floats they take."""
        return " + ".join(f"{n} * ROWS * {tile}::ROW" for tile, n in self._rows(count).items()) or "0"

    def _products(self) -> list[str]:
        lines, parts = [], self.plan.parts
        if not parts:
            return []
        holds = ", ".join(f"{n} times (ROWS, {tile}::ROW)" for tile, n in self._rows(len(self.plan.arguments)).items())
        lines += [f"threadgroup float* arguments = (threadgroup float*)scratch;  // {holds}"]
        lines += [f"fill(arguments, {self._floats(len(self.plan.arguments))}, thread_index, THREADS, 0.0f);"]
        for p, part in enumerate(parts):
            sizes = f"{part.inputs.letter}, {part.blocks} * {part.results.letter}"
            lines.append(f"typedef Product<{sizes}, SPLIT, {part.blocks}, THREADS, RESIDENT> Product{p};  // {part.name}")
        floats = [f"int(Product{p}::FLOAT4S)" for p in range(len(parts))]
        lines += [f"device const float* packed = weights + rows.direction * 4 * ({' + '.join(floats)}) * THREADS;"]
        for p in range(len(parts)):
            lines += [f"Product{p} product{p};", f"load_product(product{p}, packed, thread_index);"]
            lines += [f"packed += 4 * int(Product{p}::FLOAT4S) * THREADS;"] * (p + 1 < len(parts))
        for c, p in self.owners:
            lines += self._owner(c, p)
        return lines

    def _owner(self, c: int, p: int) -> list[str]:
        """Which x the lane of a result takes, and what it makes of the sum."""
        here = [self.owned.get((c, b)) for b in _blocks(self.plan, p)]
        places = [o.x if o else 0 for o in here]
        owner, lines = f"product{p}.owned", []
        index = str(places[-1])
        for k in range(len(places) - 2, -1, -1):
            index = f"{owner} == {k} ? {places[k]} : {index}"
        if places == list(range(places[0], places[0] + len(places))):
            index = f"{places[0]} + or_last({owner}, {len(places)})" if places[0] else f"or_last({owner}, {len(places)})"
        lines.append(f"int own{c}_{p} = {index};")
        for name, chosen in (("tanh", [o is not None and o.node.op == "tanh" for o in here]), ("plain", [o is None for o in here])):
            if any(chosen) and not all(chosen):
                told = " || ".join(f"{owner} == {k}" for k, yes in enumerate(chosen) if yes)
                lines.append(f"bool {name}{c}_{p} = {told};")
        return lines

    def _constants(self) -> list[str]:
        count = len(self.definition.parameters)
        names = [f"p{k}" for k in range(count)]
        lines = declare(names, "C::BLOCKS")
        read = [f"p{k}[block] = parameters[(rows.direction * {count} + {k}) * H + read];" for k in range(count)]
        for node in self.constant:
            lines += declare([f"v{node.index}"], "C::BLOCKS", "bool" if node.is_condition else "float")
        made, _ = statements(self.constant, self.names, {n.index: f"v{n.index}[block]" for n in self.constant})
        return [*lines, *for_units([*read, *made])]

    def _readings(self) -> list[Reading]:
        """What a step reads."""
        count = len(self.definition.x)
        found = [Reading(f"x{k}", f"x_proj[(place * {count} + {k}) * H + read]") for k in self.xs]
        return found + [Reading(f"x{c}_{p}", f"x_proj[(place * {count} + own{c}_{p}) * H + read]") for c, p in self.owners]

    def _first(self) -> list[str]:
        """The states, and what the first step reads."""
        names = [*((f"s{k}", size) for k, size in enumerate(self.states)), *((f"{name}_read", size) for name, _, size in self._readings())]
        lines = declare_values(names)
        for size in self.plan.sizes:
            read = (f"s{k}[i] = initial{k}[place_of_state(rows, r) * {size.letter} + read];" for k in self.plan.states(size))
            lines += for_values(list(read), size)
        lines += declare(["dt_read"], "ROWS") if self.definition.is_timed else []
        return [*lines, *read_ahead(self._readings(), "0", self.definition.is_timed), *[BARRIER] * bool(self.plan.parts)]

    def _steps(self) -> list[str]:
        body = read_now(self._readings(), self.definition.is_timed)
        kept = [(self.definition.graph.nodes[index], name.split("[")[0]) for index, name in self.kept.items()]
        body += declare_values([(name, size_of(node)) for node, name in kept if not node.is_condition])
        body += declare_values([(name, size_of(node)) for node, name in kept if node.is_condition], "bool")
        ahead = read_ahead(self._readings(), "t + 1", self.definition.is_timed)
        for number, targets in enumerate(self.targets[:-1]):
            body += [*self._arguments(number, targets), *([] if number else ahead), *self._stage(number)]
        body += ahead if len(self.targets) == 1 else []
        return ["for (int t = 0; t < rows.steps; t++) {", *indented([*body, *self._last()]), "}"]

    def _available(self, number: int) -> dict[int, str]:
        """Node index -> text of what is there in a part of a step."""
        available = self.names | {n.index: f"v{n.index}[block]" for n in self.constant}
        made = {n.index for targets in self.targets[:number] for n in self._needed(targets, available)}
        return available | {index: name for index, name in self.kept.items() if index in made}

    def _computed(self, number: int, targets: list[Node]) -> tuple[list[str], list[str]]:
        available = self._available(number)
        return statements(targets, available, {k: v for k, v in self.kept.items() if k not in available})

    def _buffer(self, number: int) -> str:
        if len(self.plan.sizes) > 1:
            own = f" + t % 2 * ROWS * {size_of(self.plan.arguments[number]).tile}::ROW" if self.buffers == 2 else ""
            return f"{self._floats(number)}{own}"
        place = f"{self.buffers} * {number} + t % 2" if self.buffers == 2 and number else "t % 2" if self.buffers == 2 else str(number)
        return f"({place}) * ROWS * C::ROW" if " " in place else f"{place} * ROWS * C::ROW"

    def _arguments(self, stage: int, targets: list[Node]) -> list[str]:
        numbers = self.plan.stage_arguments(stage)
        made = [f"threadgroup float* a{k} = arguments + {self._buffer(k)};" for k in numbers]
        for size in self.plan.sizes:
            own = [(k, node) for k, node in zip(numbers, targets, strict=True) if size_of(node) == size]
            lines, values = self._computed(stage, [node for _, node in own])
            stores = [f"a{k}[r * {size.tile}::ROW + u] = {value};" for (k, _), value in zip(own, values, strict=True)]
            made += for_values([*lines, *guarded(stores, size)], size)
        return [*made, BARRIER]

    def _stage(self, stage: int) -> list[str]:
        """The products of a stage: first all partial sums, whose lanes then wait for each other's shuffles together."""
        sums, joined, declared = ({size: list[str]() for size in self.plan.sizes} for _ in range(3))
        for c in self.plan.stage_calls(stage):
            call = self.definition.calls[c]
            argument = f"(threadgroup const float4*)a{self.plan.argument_of(call)}"
            for p in self.plan.parts_of(call):
                count, size = self.plan.parts[p].blocks, self.plan.parts[p].results
                times = f"{count} * " if count > 1 else ""
                first = f"q{c}_{p} + {times}block * ROWS"
                declared[size] += declare([f"q{c}_{p}"], f"{times}{size.tile}::COUNT")
                sums[size].append(f"partial_sums<ROWS>(product{p}, {argument}, block, {first});")
                joined[size] += [f"join_lanes<ROWS>(product{p}, {first});", *self._gathered(c, p)]
        loops = [line for part in (sums, joined) for size, lines in part.items() for line in for_units(lines, size)]
        return [*(line for lines in declared.values() for line in lines), *loops]

    def _gathered(self, c: int, p: int) -> list[str]:
        """From the lanes that own a result each to the one that has them all."""
        count = self.plan.parts[p].blocks
        if count == 1:
            return []
        lines = ["int i = block * ROWS + r;", f"float value = q{c}_{p}[{count} * i];"]
        if (c, p) in self.owners:
            lines += self._activated(c, p)
        lines += [f"gather<Product{p}>(value, q{c}_{p} + {count} * i);"]
        return ["#pragma unroll", "for (int r = 0; r < ROWS; r++) {", *indented(lines), "}"]

    def _activated(self, c: int, p: int) -> list[str]:
        here = [self.owned.get((c, b)) for b in _blocks(self.plan, p)]
        ops = {o.node.op for o in here if o}
        total = f"x{c}_{p}[i] + value"
        act = f"tanh_or_sigmoid(tanh{c}_{p}, {total})" if len(ops) == 2 else f"fast_{ops.pop()}({total})"
        act += "".join(dict.fromkeys(marks(o.total) + marks(o.node) for o in here if o))
        return [f"value = select({act}, value, plain{c}_{p});" if None in here else f"value = {act};"]

    def _last(self) -> list[str]:
        """The states after a step; those of a sequence that has ended stay."""
        made = []
        for size in self.plan.sizes:
            numbers = self.plan.states(size)
            if not numbers:
                continue
            lines, values = self._computed(len(self.targets) - 1, [self.definition.after[k] for k in numbers])
            lines += [f"float next{k} = {value};" for k, value in zip(numbers, values, strict=True)]
            lines += ["bool valid = has_step(rows, t, r);", *(f"s{k}[i] = valid ? next{k} : s{k}[i];" for k in numbers)]
            stores = [f"after{k}[place_at(rows, t, r) * {size.letter} + u] = valid ? next{k} : 0.0f;" for k in numbers]
            made += for_values([*lines, f"if ({writes(size)}) {{", *indented(stores), "}"], size)
        return made

    def _closing(self) -> list[str]:
        return [f"clear_steps<THREADS>(after{k}, rows.steps, {size.letter}, rows, thread_index);" for k, size in enumerate(self.states)]


def guarded(stores: list[str], size: Size = UNITS) -> list[str]:
    """What only the lanes that write do."""
    if len(stores) > 1:
        return [f"if ({writes(size)}) {{", *indented(stores), "}"]
    return [f"if ({writes(size)}) {line}" for line in stores]


def _blocks(plan: Plan, p: int) -> range:
    """The blocks of a weight that a part has."""
    part = plan.parts[p]
    return range(part.first, part.first + part.blocks)


@lru_cache(maxsize=64)
def forward_kernel(definition: Definition) -> KernelText:
    """The forward scan's kernel."""
    plan = plan_of(definition)
    made = Forward(plan)
    inputs, outputs = ([name for name, _, _ in arrays] for arrays in (made.arrays, made.outputs))
    states = [f"initial{k}" for k in range(len(outputs))]
    along = axes(dtbh=" ".join(["x_proj", *outputs]), dtb="times", dbh=" ".join(states), b="lengths")
    carried = tuple(zip(states, outputs, strict=True))
    return kernel_text(definition.name, "forward", arguments_of(plan), FILES, made.text(), inputs, outputs, along, carried)
