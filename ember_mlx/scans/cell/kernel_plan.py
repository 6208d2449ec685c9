"""How a cell's step is divided among kernels: its products, and what goes backward through it."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ...step.definition import Call, Definition
from ...step.derivative import Form, Variable
from ...step.graph import Node
from ...step.metal import without_sign

MOST_BLOCKS = 4  # of a weight, that one product of metal/product.metal makes of a unit


class Size(NamedTuple):
    """How kernel text names what there is of values of one size.

    Args:
        letter: their number, a template argument.
        tile: how they lie on a threadgroup.
        suffix: of arrays of which there is one for each size.
    """

    letter: str
    tile: str
    suffix: str


UNITS = Size("H", "C", "")
FEATURES = Size("P", "CP", "_p")  # where a cell names another size for some states and products


def size_of(node: Node) -> Size:
    """The size of a node's values; what has one value for all units lies with those of H."""
    return UNITS if node.size in ("H", None) else FEATURES


class Part(NamedTuple):
    """Blocks of a weight that are one product.

    Args:
        name: of the weight.
        first: of its blocks.
        blocks: how many.
        inputs: the size of what it is multiplied with.
        results: the size of a block of results.
    """

    name: str
    first: int
    blocks: int
    inputs: Size
    results: Size


@dataclass(frozen=True)
class Plan:
    """What the kernels of a definition have in common, whatever its sizes."""

    definition: Definition

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes of its values."""
        return (UNITS, FEATURES) if set(self.definition.sizes.values()) != {"H"} else (UNITS,)

    def states(self, size: Size) -> list[int]:
        """The numbers of the states of a size."""
        return [k for k, node in enumerate(self.definition.before) if size_of(node) == size]

    # Forward

    @cached_property
    def parts(self) -> list[Part]:
        """The products' weights, in the order in which they are packed."""
        return [part for name in self.definition.h_products for part in self._parts(name)]

    def weight(self, name: str) -> Part:
        """A weight as a whole."""
        call = next(call for call in self.definition.calls if call.name == name)
        return Part(name, 0, len(call.results), size_of(call.argument), size_of(call.results[0]))

    def _parts(self, name: str) -> list[Part]:
        """A weight in as few parts as possible, of about as many blocks."""
        whole = self.weight(name)
        number = -(-whole.blocks // MOST_BLOCKS)
        firsts = [whole.blocks * k // number for k in range(number + 1)]
        return [whole._replace(first=firsts[k], blocks=firsts[k + 1] - firsts[k]) for k in range(number)]

    def parts_of(self, call: Call) -> list[int]:
        """The numbers of a call's parts."""
        return [k for k, part in enumerate(self.parts) if part.name == call.name]

    @cached_property
    def arguments(self) -> list[Node]:
        """What products are made of, each once."""
        return list({call.argument.index: call.argument for call in self.definition.calls}.values())

    def argument_of(self, call: Call) -> int:
        """Its number among the arguments."""
        return next(k for k, node in enumerate(self.arguments) if node.index == call.argument.index)

    def stage_calls(self, stage: int) -> list[int]:
        """The numbers of the calls of a stage."""
        return [c for c, call in enumerate(self.definition.calls) if call.stage == stage]

    def stage_arguments(self, stage: int) -> list[int]:
        """The numbers of the arguments of a stage, in the order of its calls."""
        return list(dict.fromkeys(self.argument_of(self.definition.calls[c]) for c in self.stage_calls(stage)))

    # Backward

    @cached_property
    def coefficients(self) -> list[Node]:
        """The coefficients of the derivative that are no numbers, each once and without its sign."""
        bases = (without_sign(c)[1] for form in self.definition.pull.forms() for c in form.values())
        return list({node.index: node for node in bases if node.op != "constant"}.values())

    def coefficients_of(self, size: Size) -> list[Node]:
        """Those of a size."""
        return [node for node in self.coefficients if size_of(node) == size]

    def variable_size(self, variable: Variable) -> Size:
        """The size of a variable of the derivative."""
        kind, k = variable
        if kind == "sum":
            return self.variable_size(next(iter(self.definition.pull.sums[k])))
        return size_of(self.definition.before[k] if kind == "state" else self.definition.calls[k].argument)

    @cached_property
    def levels(self) -> dict[Variable, int]:
        """After how many products a variable of the derivative is known; of a call, after its own."""
        pull = self.definition.pull
        known: dict[Variable, int] = {("state", k): 0 for k in range(len(self.definition.states))}
        for kind, k in pull.order:
            forms = [pull.sums[k]] if kind == "sum" else pull.results[k]
            known[kind, k] = max((known[v] for form in forms for v in form), default=0) + (kind == "call")
        return known

    def level(self, form: Form) -> int:
        """After how many products a form is known."""
        return max((self.levels[v] for v in form), default=0)

    @cached_property
    def depth_back(self) -> int:
        """How many products follow one another on the way back."""
        return max((level for (kind, _), level in self.levels.items() if kind == "call"), default=0)

    def level_calls(self, level: int) -> list[int]:
        """The numbers of the calls whose results' gradients are known after so many products, and not before."""
        return [c for c in self.definition.pull.results if self.levels["call", c] == level + 1]

    @cached_property
    def _numbered(self) -> tuple[dict[Size, list[Form]], dict[tuple[str, int], int]]:
        found: dict[object, int] = {}
        forms: dict[Size, list[Form]] = {size: [] for size in self.sizes}
        places: dict[tuple[str, int], int] = {}

        def add(place: tuple[str, int], form: Form, size: Size = UNITS) -> None:
            key = size, frozenset((v, c.index) for v, c in form.items())
            if key not in found:
                found[key] = len(forms[size])
                forms[size].append(form)
            places[place] = found[key]

        definition, inputs = self.definition, self.definition.pull.inputs
        for k, node in enumerate(definition.x):
            add(("x", k), inputs.get(node.index, {}))
        for c, call in enumerate(definition.calls):
            results = definition.pull.results.get(c) or [{} for _ in call.results]
            for b, form in enumerate(results):
                add((f"call {c}", b), form, size_of(call.results[b]))
        for k, node in enumerate(definition.parameters.values()):
            add(("parameter", k), inputs.get(node.index, {}))
        if definition.dt is not None:
            add(("dt", 0), inputs.get(definition.dt.index, {}))
        return forms, places

    @property
    def blocks(self) -> dict[Size, list[Form]]:
        """Every form that the backward scan gives of a row and step, by size: of each x, each product's result, each parameter and dt."""
        return self._numbered[0]

    @cached_property
    def all_blocks(self) -> list[Form]:
        """Those of all sizes."""
        return [form for forms in self.blocks.values() for form in forms]

    def places(self, kind: str, count: int) -> list[int]:
        """Which blocks are the gradients of the first things of a kind: "x", "parameter", "dt", or "call 2" for the results of a call.

        They are of the size of the call's results, else of H.
        """
        return [self._numbered[1][kind, k] for k in range(count)]


@lru_cache(maxsize=64)
def plan_of(definition: Definition) -> Plan:
    """The plan of a definition."""
    return Plan(definition)
