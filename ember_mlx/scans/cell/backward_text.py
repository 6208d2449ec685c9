"""The backward scan of a cell as kernel text: the derivative's linear map, step by step."""

from collections.abc import Mapping
from functools import cached_property, lru_cache

from ...kernels.loader import KernelText, axes
from ...step.definition import Definition
from ...step.derivative import Form, Variable
from ...step.metal import linear
from .forward_text import ARGUMENTS, FILES, TEMPLATE, WRITES
from .kernel_plan import Plan, plan_of
from .lines import BARRIER, declare, for_units, for_values, function, indented, kernel_text, read_ahead, read_now

MOST_AHEAD = 24  # values of a lane that wait in registers for the next step


class Linear:
    """The derivative's variables and forms as text, on any level; a level ends with the products of its calls."""

    def __init__(self, plan: Plan, coefficients: Mapping[int, str], variables: Mapping[Variable, str]):
        self.plan, self.pull = plan, plan.definition.pull
        self.coefficients, self.variables = coefficients, variables

    def of(self, form: Form) -> str:
        """A form."""
        return linear(form, self.coefficients, self.variables)

    def sums(self, level: int) -> list[str]:
        """The sums that are known on a level."""
        numbers = [k for kind, k in self.pull.order if kind == "sum" and self.plan.levels["sum", k] == level]
        return [f"{self.variables['sum', k]} = {self.of(self.pull.sums[k])};" for k in numbers]

    def states(self) -> list[str]:
        """The gradients of the states before a step."""
        return [self.of(self.pull.inputs.get(node.index, {})) for node in self.plan.definition.before]


class Backward:
    """The text of a definition's backward scan."""

    def __init__(self, plan: Plan):
        self.plan, self.definition = plan, plan.definition
        self.states = range(len(self.definition.states))
        variables: dict[Variable, str] = {("state", k): f"g{k}[i]" for k in self.states}
        variables |= {(kind, k): f"{'m' if kind == 'sum' else 'r'}{k}[i]" for kind, k in self.definition.pull.order}
        self.linear = Linear(plan, {node.index: f"k{n}[i]" for n, node in enumerate(plan.coefficients)}, variables)

    @property
    def buffers(self) -> int:
        """How many of each call's gradients: with one product a step, they are written beside what others still read."""
        return 2 if self.plan.depth_back == 1 else 1

    @cached_property
    def calls(self) -> list[int]:
        """The numbers of the calls that have a gradient."""
        return sorted(self.definition.pull.results)

    @property
    def arrays(self) -> list[tuple[str, str, str]]:
        """The inputs: name, type, what it holds."""
        count = len(self.plan.coefficients)
        found = [(f"d_after{k}", "const float", "(D, T, B, H)") for k in self.states]
        found += [("coefficients", "const float", f"(D, T, B, {count}, H)")] * bool(count)
        found += [("weights", "const float", "D times packed, one transposed product after the other")] * bool(self.plan.parts)
        found += [(f"carry{k}", "const float", "(D, B, H): from beyond these steps") for k in self.states]
        return [*found, ("lengths", "const int", "(B)"), ("dims", "const int", "T, B")]

    @property
    def outputs(self) -> list[tuple[str, str, str]]:
        """The gradients of all blocks, and of the states before."""
        return [("d", "float", f"(D, T, B, {len(self.plan.blocks)}, H)"), *((f"d_before{k}", "float", "(D, B, H)") for k in self.states)]

    def text(self) -> str:
        """The kernel's function."""
        body = [*self._opening(), *self._products(), *self._first(), *self._steps(), *self._closing()]
        return function(TEMPLATE, ["The backward scan."], [*self.arrays, *self.outputs], body)

    def _opening(self) -> list[str]:
        ahead = len(self.plan.coefficients) + len(self.states)
        return [
            "typedef CellTile<H, THREADS, ROWS, SPLIT> C;",
            f"enum {{ AHEAD = RESIDENT && {ahead} * C::COUNT <= {MOST_AHEAD} }};",
            "CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);",
            "int group = thread_index / SPLIT, part = thread_index % SPLIT;",
        ]

    def _products(self) -> list[str]:
        counts = self.definition.h_products
        if not counts:
            return []
        numbers = {name: n for n, name in enumerate(counts)}
        lines = [
            f"typedef Product<{count} * H, H, SPLIT, 1, THREADS, RESIDENT> Product{numbers[name]};  // {name}"
            for name, count in counts.items()
        ]
        rows = [f"ROW{c} = 4 * int(Product{numbers[self.definition.calls[c].name]}::ROW4)" for c in self.calls]
        lines += ["// floats of a row of each call's gradients", f"enum {{ {', '.join(rows)} }};"] if rows else []
        lines += ["threadgroup float* gradients = (threadgroup float*)scratch;"]
        if self.calls:
            lines.append(f"fill(gradients, {self.buffers} * ROWS * ({self._size(self.calls)}), thread_index, THREADS, 0.0f);")
        sizes = [f"int(Product{n}::FLOAT4S)" for n in numbers.values()]
        lines += [f"device const float* packed = weights + rows.direction * 4 * ({' + '.join(sizes)}) * THREADS;"]
        for n in numbers.values():
            lines += [f"Product{n} product{n};", f"load_product(product{n}, packed, thread_index);"]
            lines += [f"packed += 4 * int(Product{n}::FLOAT4S) * THREADS;"] * (n + 1 < len(numbers))
        return lines

    def _size(self, calls: list[int]) -> str:
        return " + ".join(f"ROW{c}" for c in calls)

    def _readings(self) -> list[tuple[str, str]]:
        """What a step reads: the array, and its value at `place`."""
        count = len(self.plan.coefficients)
        found = [(f"y{k}", f"d_after{k}[place * H + read]") for k in self.states]
        return found + [(f"k{n}", f"coefficients[(place * {count} + {n}) * H + read]") for n in range(count)]

    def _first(self) -> list[str]:
        """The gradients of the states after the last step, and what that step reads."""
        values = [f"g{k}[i] = carry{k}[place_of_state(rows, r) * H + read];" for k in self.states]
        names = [*(f"g{k}" for k in self.states), *(f"{name}_read" for name, _ in self._readings())]
        lines = [*declare(names, "C::COUNT"), *for_values(values), *read_ahead(self._readings(), "rows.steps - 1")]
        return [*lines, *[BARRIER] * bool(self.calls)]

    def _steps(self) -> list[str]:
        body = read_now(self._readings(), also=[f"g{k}[i] += has_step(rows, t, r) ? y{k}[i] : 0.0f;" for k in self.states])
        body += declare([f"{'m' if kind == 'sum' else 'r'}{k}" for kind, k in self.definition.pull.order], "C::COUNT")
        ahead = read_ahead(self._readings(), "t - 1")
        depth = self.plan.depth_back
        body += ahead if depth <= 1 else []
        for level in range(depth):
            body += [*self._level(level), *(ahead if level == 0 and depth > 1 else []), *self._called(level)]
        return ["for (int t = rows.steps - 1; t >= 0; t--) {", *indented([*body, *self._last()]), "}"]

    def _written(self, level: int) -> list[str]:
        """The gradients that are known on a level, to where others get them."""
        blocks, calls = self.plan.blocks, self.plan.level_calls(level)
        here = [n for n, form in enumerate(blocks) if self.plan.level(form) == level]
        needed = dict.fromkeys([*here, *(n for c in calls for n in self._places(c))])
        lines = [f"float e{n} = {self.linear.of(blocks[n])};" for n in needed]
        writes = [f"d_here[{f'{n} * H' if n else '0'}] = valid ? e{n} : 0.0f;" for n in here]
        if here:
            lines += ["bool valid = has_step(rows, t, r);"]
            writes = [f"device float* d_here = d + place_at(rows, t, r) * {len(blocks)} * H + u;", *writes]
        for c in calls:
            writes += [f"b{c}[r * ROW{c} + {f'{k} * H + ' if k else ''}u] = e{n};" for k, n in enumerate(self._places(c))]
        return [*lines, f"if ({WRITES}) {{", *indented(writes), "}"] if writes else lines

    def _places(self, c: int) -> list[int]:
        return self.plan.places(f"call {c}", len(self.definition.calls[c].results))

    def _level(self, level: int) -> list[str]:
        lines = []
        for c in self.plan.level_calls(level):
            before = [self.calls[k] for k in range(self.calls.index(c))]
            offset = f"ROWS * ({self._size(before)})" if before else "0"
            if self.buffers == 2:
                offset = f"(t % 2 * ROW{c} + 2 * ({self._size(before) or 0})) * ROWS"
            lines.append(f"threadgroup float* b{c} = gradients + {offset};")
        values = [*self.linear.sums(level), *self._written(level)]
        return [*lines, *for_values(values), BARRIER]

    def _called(self, level: int) -> list[str]:
        """The products of a level: first all partial sums, whose lanes then wait for each other's shuffles together."""
        names = list(self.definition.h_products)
        sums, joined = [], []
        for c in self.plan.level_calls(level):
            n = names.index(self.definition.calls[c].name)
            sums.append(f"partial_sums<ROWS>(product{n}, (threadgroup const float4*)b{c}, block, r{c} + block * ROWS);")
            joined.append(f"join_lanes<ROWS>(product{n}, r{c} + block * ROWS);")
        return [*for_units(sums), *for_units(joined)]

    def _last(self) -> list[str]:
        """The gradients of the states before a step; at a step that a sequence does not have, what arrives passes on."""
        level = self.plan.depth_back
        lines = [*self.linear.sums(level), *self._written(level)]
        lines += [f"float next{k} = {value};" for k, value in enumerate(self.linear.states())]
        valid = "valid" if "bool valid = has_step(rows, t, r);" in lines else "has_step(rows, t, r)"
        return for_values([*lines, *(f"g{k}[i] = {valid} ? next{k} : g{k}[i];" for k in self.states)])

    def _closing(self) -> list[str]:
        writes = [f"d_before{k}[place_of_state(rows, r) * H + u] = g{k}[i];" for k in self.states]
        lines = for_values([f"if ({WRITES}) {{", *indented(writes), "}"])
        return [*lines, f"clear_steps<THREADS>(d, rows.steps, {len(self.plan.blocks)} * H, rows, thread_index);"]


@lru_cache(maxsize=64)
def backward_kernel(definition: Definition) -> KernelText:
    """The backward scan's kernel."""
    made = Backward(plan_of(definition))
    inputs, outputs = ([name for name, _, _ in arrays] for arrays in (made.arrays, made.outputs))
    names = {kind: [f"{kind}{k}" for k in made.states] for kind in ("d_after", "carry", "d_before")}
    along = axes(dtbh=" ".join(names["d_after"]), dtbsh="coefficients d", dbh=" ".join([*names["carry"], *names["d_before"]]), b="lengths")
    carried = tuple(zip(names["carry"], names["d_before"], strict=True))
    return kernel_text("cell_{}_backward", ARGUMENTS, FILES, made.text(), inputs, outputs, along, carried)
