"""How a cell's step is divided among kernels: its products, and what goes backward through it."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ...step.definition import Call, Definition
from ...step.derivative import Form, Variable
from ...step.graph import Node
from ...step.metal import without_sign

MOST_BLOCKS = 4  # of a weight, that one product of metal/product.metal makes of a unit


class Part(NamedTuple):
    """Blocks of a weight (count * H, H) that are one product.

    Args:
        name: of the weight.
        first: of its blocks.
        blocks: how many.
    """

    name: str
    first: int
    blocks: int


@dataclass(frozen=True)
class Plan:
    """What the kernels of a definition have in common, whatever its sizes."""

    definition: Definition

    # Forward

    @cached_property
    def parts(self) -> list[Part]:
        """The products' weights, in the order in which they are packed."""
        return [part for name, count in self.definition.h_products.items() for part in _parts(name, count)]

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
    def _numbered(self) -> tuple[list[Form], dict[tuple[str, int], int]]:
        found: dict[object, int] = {}
        forms: list[Form] = []
        places: dict[tuple[str, int], int] = {}

        def add(place: tuple[str, int], form: Form) -> None:
            key = frozenset((v, c.index) for v, c in form.items())
            if key not in found:
                found[key] = len(forms)
                forms.append(form)
            places[place] = found[key]

        definition, inputs = self.definition, self.definition.pull.inputs
        for k, node in enumerate(definition.x):
            add(("x", k), inputs.get(node.index, {}))
        for c, call in enumerate(definition.calls):
            results = definition.pull.results.get(c) or [{} for _ in call.results]
            for b, form in enumerate(results):
                add((f"call {c}", b), form)
        for k, node in enumerate(definition.parameters.values()):
            add(("parameter", k), inputs.get(node.index, {}))
        if definition.dt is not None:
            add(("dt", 0), inputs.get(definition.dt.index, {}))
        return forms, places

    @property
    def blocks(self) -> list[Form]:
        """Every form that the backward scan gives, (H) of a row and step: of each x, each product's result, each parameter and dt."""
        return self._numbered[0]

    def places(self, kind: str, count: int) -> list[int]:
        """Which blocks are the gradients of the first things of a kind: "x", "parameter", "dt", or "call 2" for the results of a call."""
        return [self._numbered[1][kind, k] for k in range(count)]


@lru_cache(maxsize=64)
def plan_of(definition: Definition) -> Plan:
    """The plan of a definition."""
    return Plan(definition)


def _parts(name: str, count: int) -> list[Part]:
    """A weight in as few parts as possible, of about as many blocks."""
    number = -(-count // MOST_BLOCKS)
    firsts = [count * k // number for k in range(number + 1)]
    return [Part(name, firsts[k], firsts[k + 1] - firsts[k]) for k in range(number)]
