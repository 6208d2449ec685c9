"""The backward scan of a cell as kernel text: the derivative's linear map, step by step."""

from collections.abc import Mapping
from functools import cached_property, lru_cache

from ...kernels.loader import KernelText, axes
from ...step.definition import Definition
from ...step.derivative import Form, Variable
from ...step.metal import linear
from .forward_text import FILES, arguments_of, template_of, tiles_of
from .kernel_plan import Plan, Size, plan_of, size_of
from .lines import (
    BARRIER,
    Reading,
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

MOST_AHEAD = 24  # values of a lane that wait in registers for the next step


class Linear:
    """The derivative's variables and forms as text, on any level; a level ends with the products of its calls."""

    def __init__(self, plan: Plan, coefficients: Mapping[int, str], variables: Mapping[Variable, str]):
        self.plan, self.pull = plan, plan.definition.pull
        self.coefficients, self.variables = coefficients, variables

    def of(self, form: Form) -> str:
        """A form."""
        return linear(form, self.coefficients, self.variables)

    def sums(self, level: int, size: Size) -> list[str]:
        """The sums of a size that are known on a level."""
        sums = [k for kind, k in self.pull.order if kind == "sum" and self.plan.variable_size(("sum", k)) == size]
        return [f"{self.variables['sum', k]} = {self.of(self.pull.sums[k])};" for k in sums if self.plan.levels["sum", k] == level]

    def state(self, k: int) -> str:
        """The gradient of a state before a step."""
        return self.of(self.pull.inputs.get(self.plan.definition.before[k].index, {}))


class Backward:
    """The text of a definition's backward scan."""

    def __init__(self, plan: Plan):
        self.plan, self.definition = plan, plan.definition
        self.states = range(len(self.definition.states))
        variables: dict[Variable, str] = {("state", k): f"g{k}[i]" for k in self.states}
        variables |= {(kind, k): f"{'m' if kind == 'sum' else 'r'}{k}[i]" for kind, k in self.definition.pull.order}
        names = {node.index: f"k{n}{size.suffix}[i]" for size in plan.sizes for n, node in enumerate(plan.coefficients_of(size))}
        self.linear = Linear(plan, names, variables)
        self.sizes = [size_of(node) for node in self.definition.before]  # of the states

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
        found = [(f"d_after{k}", "const float", f"(D, T, B, {size.letter})") for k, size in enumerate(self.sizes)]
        for size in self.plan.sizes:
            count = len(self.plan.coefficients_of(size))
            found += [(f"coefficients{size.suffix}", "const float", f"(D, T, B, {count}, {size.letter})")] * bool(count)
        found += [("weights", "const float", "D times packed, one transposed product after the other")] * bool(self.plan.parts)
        found += [(f"carry{k}", "const float", f"(D, B, {size.letter}): from beyond these steps") for k, size in enumerate(self.sizes)]
        return [*found, ("lengths", "const int", "(B)"), ("dims", "const int", "T, B")]

    @property
    def outputs(self) -> list[tuple[str, str, str]]:
        """The gradients of all blocks, and of the states before."""
        blocks = self.plan.blocks.items()
        found = [(f"d{size.suffix}", "float", f"(D, T, B, {len(forms)}, {size.letter})") for size, forms in blocks if forms]
        return [*found, *((f"d_before{k}", "float", f"(D, B, {size.letter})") for k, size in enumerate(self.sizes))]

    def text(self) -> str:
        """The kernel's function."""
        body = [*self._opening(), *self._products(), *self._first(), *self._steps(), *self._closing()]
        return function(template_of(self.plan), ["The backward scan."], [*self.arrays, *self.outputs], body)

    def _opening(self) -> list[str]:
        counts = [(len(self.plan.coefficients_of(size)) + self.sizes.count(size), size) for size in self.plan.sizes]
        ahead = " + ".join(f"{count} * {size.tile}::COUNT" for count, size in counts if count)
        return [
            *tiles_of(self.plan),
            f"enum {{ AHEAD = RESIDENT && {ahead} <= {MOST_AHEAD} }};",
            "CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);",
            "int group = thread_index / SPLIT, part = thread_index % SPLIT;",
        ]

    def _products(self) -> list[str]:
        counts = self.definition.h_products
        if not counts:
            return []
        numbers = {name: n for n, name in enumerate(counts)}
        lines = []
        for name, n in numbers.items():
            whole = self.plan.weight(name)
            sizes = f"{whole.blocks} * {whole.results.letter}, {whole.inputs.letter}"
            lines.append(f"typedef Product<{sizes}, SPLIT, 1, THREADS, RESIDENT> Product{n};  // {name}")
        rows = [f"ROW{c} = 4 * int(Product{numbers[self.definition.calls[c].name]}::ROW4)" for c in self.calls]
        lines += ["// floats of a row of each call's gradients", f"enum {{ {', '.join(rows)} }};"] if rows else []
        lines += ["threadgroup float* gradients = (threadgroup float*)scratch;"]
        if self.calls:
            lines.append(f"fill(gradients, {self.buffers} * ROWS * ({self._size(self.calls)}), thread_index, THREADS, 0.0f);")
        floats = [f"int(Product{n}::FLOAT4S)" for n in numbers.values()]
        lines += [f"device const float* packed = weights + rows.direction * 4 * ({' + '.join(floats)}) * THREADS;"]
        for n in numbers.values():
            lines += [f"Product{n} product{n};", f"load_product(product{n}, packed, thread_index);"]
            lines += [f"packed += 4 * int(Product{n}::FLOAT4S) * THREADS;"] * (n + 1 < len(numbers))
        return lines

    def _size(self, calls: list[int]) -> str:
        return " + ".join(f"ROW{c}" for c in calls)

    def _readings(self) -> list[Reading]:
        """What a step reads."""
        found = [Reading(f"y{k}", f"d_after{k}[place * {size.letter} + read]", size) for k, size in enumerate(self.sizes)]
        for size in self.plan.sizes:
            count, suffix = len(self.plan.coefficients_of(size)), size.suffix
            places = (f"coefficients{suffix}[(place * {count} + {n}) * {size.letter} + read]" for n in range(count))
            found += [Reading(f"k{n}{suffix}", place, size) for n, place in enumerate(places)]
        return found

    def _first(self) -> list[str]:
        """The gradients of the states after the last step, and what that step reads."""
        names = [*((f"g{k}", size) for k, size in enumerate(self.sizes)), *((f"{name}_read", size) for name, _, size in self._readings())]
        lines = declare_values(names)
        for size in self.plan.sizes:
            values = (f"g{k}[i] = carry{k}[place_of_state(rows, r) * {size.letter} + read];" for k in self.plan.states(size))
            lines += for_values(list(values), size)
        return [*lines, *read_ahead(self._readings(), "rows.steps - 1"), *[BARRIER] * bool(self.calls)]

    def _steps(self) -> list[str]:
        states = {size: self.plan.states(size) for size in self.plan.sizes}
        also = {size: [f"g{k}[i] += has_step(rows, t, r) ? y{k}[i] : 0.0f;" for k in own] for size, own in states.items()}
        order, variable_size = self.definition.pull.order, self.plan.variable_size
        body = read_now(self._readings(), also=also)
        body += declare_values([(f"{'m' if kind == 'sum' else 'r'}{k}", variable_size((kind, k))) for kind, k in order])
        ahead = read_ahead(self._readings(), "t - 1")
        depth = self.plan.depth_back
        body += ahead if depth <= 1 else []
        for level in range(depth):
            body += [*self._level(level), *(ahead if level == 0 and depth > 1 else []), *self._called(level)]
        return ["for (int t = rows.steps - 1; t >= 0; t--) {", *indented([*body, *self._last()]), "}"]

    def _written(self, level: int, size: Size) -> list[str]:
        """The gradients of a size that are known on a level, to where others get them."""
        blocks, letter = self.plan.blocks[size], size.letter
        calls = [c for c in self.plan.level_calls(level) if size_of(self.definition.calls[c].results[0]) == size]
        here = [n for n, form in enumerate(blocks) if self.plan.level(form) == level]
        needed = dict.fromkeys([*here, *(n for c in calls for n in self._places(c))])
        lines = [f"float e{n} = {self.linear.of(blocks[n])};" for n in needed]
        stores = [f"d_here[{f'{n} * {letter}' if n else '0'}] = valid ? e{n} : 0.0f;" for n in here]
        if here:
            lines += ["bool valid = has_step(rows, t, r);"]
            stores = [f"device float* d_here = d{size.suffix} + place_at(rows, t, r) * {len(blocks)} * {letter} + u;", *stores]
        for c in calls:
            stores += [f"b{c}[r * ROW{c} + {f'{k} * {letter} + ' if k else ''}u] = e{n};" for k, n in enumerate(self._places(c))]
        return [*lines, f"if ({writes(size)}) {{", *indented(stores), "}"] if stores else lines

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
        for size in self.plan.sizes:
            lines += for_values([*self.linear.sums(level, size), *self._written(level, size)], size)
        return [*lines, BARRIER]

    def _called(self, level: int) -> list[str]:
        """The products of a level: first all partial sums, whose lanes then wait for each other's shuffles together."""
        names = list(self.definition.h_products)
        sums, joined = ({size: list[str]() for size in self.plan.sizes} for _ in range(2))
        for c in self.plan.level_calls(level):
            n, size = names.index(self.definition.calls[c].name), self.plan.variable_size(("call", c))
            sums[size].append(f"partial_sums<ROWS>(product{n}, (threadgroup const float4*)b{c}, block, r{c} + block * ROWS);")
            joined[size].append(f"join_lanes<ROWS>(product{n}, r{c} + block * ROWS);")
        return [line for part in (sums, joined) for size, lines in part.items() for line in for_units(lines, size)]

    def _last(self) -> list[str]:
        """The gradients of the states before a step; at a step that a sequence does not have, what arrives passes on."""
        level, made = self.plan.depth_back, []
        for size in self.plan.sizes:
            lines, states = [*self.linear.sums(level, size), *self._written(level, size)], self.plan.states(size)
            lines += [f"float next{k} = {self.linear.state(k)};" for k in states]
            valid = "valid" if "bool valid = has_step(rows, t, r);" in lines else "has_step(rows, t, r)"
            made += for_values([*lines, *(f"g{k}[i] = {valid} ? next{k} : g{k}[i];" for k in states)], size)
        return made

    def _closing(self) -> list[str]:
        lines = []
        for size in self.plan.sizes:
            stores = [f"d_before{k}[place_of_state(rows, r) * {size.letter} + u] = g{k}[i];" for k in self.plan.states(size)]
            lines += for_values([f"if ({writes(size)}) {{", *indented(stores), "}"] if stores else [], size)
        counts = [(size, len(forms)) for size, forms in self.plan.blocks.items() if forms]
        d = (f"d{size.suffix}, rows.steps, {count} * {size.letter}" for size, count in counts)
        return [*lines, *(f"clear_steps<THREADS>({one}, rows, thread_index);" for one in d)]


@lru_cache(maxsize=64)
def backward_kernel(definition: Definition) -> KernelText:
    """The backward scan's kernel."""
    plan = plan_of(definition)
    made = Backward(plan)
    inputs, outputs = ([name for name, _, _ in arrays] for arrays in (made.arrays, made.outputs))
    names = {kind: [f"{kind}{k}" for k in made.states] for kind in ("d_after", "carry", "d_before")}
    of_steps = "coefficients d" + " coefficients_p d_p" * (len(plan.sizes) > 1)
    along = axes(dtbh=" ".join(names["d_after"]), dtbsh=of_steps, dbh=" ".join([*names["carry"], *names["d_before"]]), b="lengths")
    carried = tuple(zip(names["carry"], names["d_before"], strict=True))
    return kernel_text(definition.name, "backward", arguments_of(plan), FILES, made.text(), inputs, outputs, along, carried)
