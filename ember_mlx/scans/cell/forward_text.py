"""The forward scan of a cell as kernel text."""

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import NamedTuple

from ...kernels.loader import KernelText, axes
from ...step.definition import Definition
from ...step.graph import LEAVES, Node, needed_for
from ...step.metal import statements
from .kernel_plan import Plan, plan_of
from .lines import BARRIER, declare, for_units, for_values, function, indented, kernel_text, read_ahead, read_now

FILES = ("pointwise.metal", "cell_pointwise.metal", "product.metal", "sequences.metal", "cell.metal")
TEMPLATE = "int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT"
ARGUMENTS = "H, THREADS, ROWS, SPLIT, RESIDENT"
MOST_AHEAD = 16  # values of a lane that wait in registers for the next step
WRITES = "part == 0 && u < H && r < rows.count"


class Owned(NamedTuple):
    """A result that its lane makes more of before the others get it: act(x + W v), where it is used as nothing else.

    Args:
        node: act(x + W v).
        x: the number of x.
    """

    node: Node
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
                    found[c, b] = Owned(act, x)
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
        found += [(f"initial{k}", "const float", "(D, B, H)") for k in range(len(definition.states))]
        return [*found, ("lengths", "const int", "(B)"), ("dims", "const int", "T, B")]

    @property
    def outputs(self) -> list[tuple[str, str, str]]:
        """The states after each step."""
        return [(f"after{k}", "float", "(D, T, B, H)") for k in range(len(self.definition.states))]

    def text(self) -> str:
        """The kernel's function."""
        body = [*self._opening(), *self._products(), *self._constants(), *self._first(), *self._steps(), *self._closing()]
        return function(TEMPLATE, ["The forward scan."], [*self.arrays, *self.outputs], body)

    def _opening(self) -> list[str]:
        ahead = len(self.xs) + len(self.owners) + self.definition.is_timed
        return [
            "typedef CellTile<H, THREADS, ROWS, SPLIT> C;",
            f"enum {{ AHEAD = RESIDENT && {ahead} * C::COUNT <= {MOST_AHEAD} }};",
            "CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);",
            "int group = thread_index / SPLIT, part = thread_index % SPLIT;",
        ]

    @property
    def buffers(self) -> int:
        """How many of each argument: with one product a step, it is written beside what others still read."""
        return 2 if self.definition.depth == 1 else 1

    def _products(self) -> list[str]:
        lines, parts = [], self.plan.parts
        if not parts:
            return []
        count = len(self.plan.arguments) * self.buffers
        lines += [f"threadgroup float* arguments = (threadgroup float*)scratch;  // {count} times (ROWS, C::ROW)"]
        lines += [f"fill(arguments, {count} * ROWS * C::ROW, thread_index, THREADS, 0.0f);"]
        lines += [
            f"typedef Product<H, {part.blocks} * H, SPLIT, {part.blocks}, THREADS, RESIDENT> Product{p};  // {part.name}"
            for p, part in enumerate(parts)
        ]
        sizes = [f"int(Product{p}::FLOAT4S)" for p in range(len(parts))]
        lines += [f"device const float* packed = weights + rows.direction * 4 * ({' + '.join(sizes)}) * THREADS;"]
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
        return [*lines, *(for_units([*read, *made]) if names else [])]

    def _readings(self) -> list[tuple[str, str]]:
        """What a step reads: the array, and its value at `place`."""
        count = len(self.definition.x)
        found = [(f"x{k}", f"x_proj[(place * {count} + {k}) * H + read]") for k in self.xs]
        return found + [(f"x{c}_{p}", f"x_proj[(place * {count} + own{c}_{p}) * H + read]") for c, p in self.owners]

    def _first(self) -> list[str]:
        """The states, and what the first step reads."""
        states = [f"s{k}" for k in range(len(self.definition.states))]
        read = [f"s{k}[i] = initial{k}[place_of_state(rows, r) * H + read];" for k in range(len(states))]
        lines = [*declare([*states, *(f"{name}_read" for name, _ in self._readings())], "C::COUNT"), *for_values(read)]
        lines += declare(["dt_read"], "ROWS") if self.definition.is_timed else []
        return [*lines, *read_ahead(self._readings(), "0", self.definition.is_timed), *[BARRIER] * bool(self.plan.parts)]

    def _steps(self) -> list[str]:
        body = read_now(self._readings(), self.definition.is_timed)
        kept = [(self.definition.graph.nodes[index], name.split("[")[0]) for index, name in self.kept.items()]
        body += declare([name for node, name in kept if not node.is_condition], "C::COUNT")
        body += declare([name for node, name in kept if node.is_condition], "C::COUNT", "bool")
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
        place = f"{self.buffers} * {number} + t % 2" if self.buffers == 2 and number else "t % 2" if self.buffers == 2 else str(number)
        return f"({place}) * ROWS * C::ROW" if " " in place else f"{place} * ROWS * C::ROW"

    def _arguments(self, stage: int, targets: list[Node]) -> list[str]:
        numbers = self.plan.stage_arguments(stage)
        lines, values = self._computed(stage, targets)
        pointers = [f"threadgroup float* a{k} = arguments + {self._buffer(k)};" for k in numbers]
        writes = [f"a{k}[r * C::ROW + u] = {value};" for k, value in zip(numbers, values, strict=True)]
        guarded = [f"if ({WRITES}) {{", *indented(writes), "}"] if len(writes) > 1 else [f"if ({WRITES}) {writes[0]}"]
        return [*pointers, *for_values([*lines, *guarded]), BARRIER]

    def _stage(self, stage: int) -> list[str]:
        """The products of a stage: first all partial sums, whose lanes then wait for each other's shuffles together."""
        sums, joined, names = [], [], []
        for c in self.plan.stage_calls(stage):
            call = self.definition.calls[c]
            argument = f"(threadgroup const float4*)a{self.plan.argument_of(call)}"
            for p in self.plan.parts_of(call):
                count = self.plan.parts[p].blocks
                first = f"q{c}_{p} + {f'{count} * ' if count > 1 else ''}block * ROWS"
                names.append((f"q{c}_{p}", f"{count} * C::COUNT" if count > 1 else "C::COUNT"))
                sums.append(f"partial_sums<ROWS>(product{p}, {argument}, block, {first});")
                joined += [f"join_lanes<ROWS>(product{p}, {first});", *self._gathered(c, p)]
        declared = [line for name, size in names for line in declare([name], size)]
        return [*declared, *for_units(sums), *for_units(joined)]

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
        return [f"value = select({act}, value, plain{c}_{p});" if None in here else f"value = {act};"]

    def _last(self) -> list[str]:
        """The states after a step; those of a sequence that has ended stay."""
        count = len(self.definition.states)
        lines, values = self._computed(len(self.targets) - 1, self.targets[-1])
        lines += [f"float next{k} = {value};" for k, value in enumerate(values)]
        lines += ["bool valid = has_step(rows, t, r);", *(f"s{k}[i] = valid ? next{k} : s{k}[i];" for k in range(count))]
        writes = [f"after{k}[place_at(rows, t, r) * H + u] = valid ? next{k} : 0.0f;" for k in range(count)]
        return for_values([*lines, f"if ({WRITES}) {{", *indented(writes), "}"])

    def _closing(self) -> list[str]:
        states = range(len(self.definition.states))
        return [f"clear_steps<THREADS>(after{k}, rows.steps, H, rows, thread_index);" for k in states]


def _blocks(plan: Plan, p: int) -> range:
    """The blocks of a weight that a part has."""
    part = plan.parts[p]
    return range(part.first, part.first + part.blocks)


@lru_cache(maxsize=64)
def forward_kernel(definition: Definition) -> KernelText:
    """The forward scan's kernel."""
    made = Forward(plan_of(definition))
    inputs, outputs = ([name for name, _, _ in arrays] for arrays in (made.arrays, made.outputs))
    states = [f"initial{k}" for k in range(len(outputs))]
    along = axes(dtbh=" ".join(["x_proj", *outputs]), dtb="times", dbh=" ".join(states), b="lengths")
    carried = tuple(zip(states, outputs, strict=True))
    return kernel_text("cell_{}_forward", ARGUMENTS, FILES, made.text(), inputs, outputs, along, carried)
