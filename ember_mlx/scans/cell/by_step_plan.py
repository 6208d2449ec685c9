"""What each kernel makes of a step between matrix products: as few kernels as there can be, each for the values of one size."""

from functools import lru_cache

from ...step.definition import Definition
from ...step.graph import Node, needed_for
from .kernel_plan import Size, plan_of, size_of

# Forward: a kernel before the products of each stage, of their arguments, and one behind the last


@lru_cache(maxsize=64)
def at_hand(definition: Definition) -> frozenset[int]:
    """The indices of nodes that no kernel computes: states before the step, and all that a product gives."""
    results = [call.results[0] for call in definition.calls if len(call.results) == 1]
    return frozenset(node.index for node in (*definition.before, *results))


@lru_cache(maxsize=256)
def arguments_made(definition: Definition, stage: int, size: Size) -> tuple[Node, ...]:
    """The arguments of a stage's products that are to be computed."""
    plan = plan_of(definition)
    nodes = (plan.arguments[k] for k in plan.stage_arguments(stage))
    return tuple(node for node in nodes if node.index not in at_hand(definition) and size_of(node) == size)


@lru_cache(maxsize=256)
def values_made(definition: Definition, stage: int, size: Size) -> tuple[Node, ...]:
    """These and the next states, each in the first kernel that can make it; one behind the last products has only what is left over."""
    stages = [s for s in range(definition.depth) if arguments_made(definition, s, size)]
    made = list(arguments_made(definition, stage, size))
    for node in definition.after:
        if node.index not in at_hand(definition) and size_of(node) == size:
            products = (n.data[0] for n in needed_for([node]) if n.op == "product")
            first = max((definition.calls[c].stage + 1 for c in products), default=0)
            made += [node] * (next((s for s in stages if s >= first), definition.depth) == stage)
    return tuple({node.index: node for node in made}.values())


# Backward: a kernel before the products of each level but 0, of the gradients of their results, and one that is both behind the last
# products of a step and before the products of level 0 of the step before it


@lru_cache(maxsize=256)
def calls_at(definition: Definition, level: int, size: Size) -> tuple[int, ...]:
    """The numbers of the calls whose results, of a size, have gradients that are known on a level."""
    return tuple(c for c in plan_of(definition).level_calls(level) if size_of(definition.calls[c].results[0]) == size)


def _level_of(definition: Definition, known: int, size: Size) -> int:
    """The first level with a kernel, among those on which something is known."""
    levels = range(known, plan_of(definition).depth_back)
    return next((level for level in levels if calls_at(definition, level, size)), plan_of(definition).depth_back)


@lru_cache(maxsize=256)
def blocks_at(definition: Definition, level: int, size: Size) -> tuple[int, ...]:
    """The numbers of the blocks that a level's kernel writes: first those of its calls, one call after the other."""
    plan = plan_of(definition)
    forms, of_calls = plan.blocks[size], {k: _places(definition, calls_at(definition, k, size)) for k in range(plan.depth_back)}
    others = sorted(set(range(len(forms))).difference(*of_calls.values()))
    return (*of_calls.get(level, ()), *(n for n in others if _level_of(definition, plan.level(forms[n]), size) == level))


def _places(definition: Definition, calls: tuple[int, ...]) -> list[int]:
    return [n for c in calls for n in plan_of(definition).places(f"call {c}", len(definition.calls[c].results))]


@lru_cache(maxsize=256)
def states_at(definition: Definition, level: int, size: Size) -> tuple[int, ...]:
    """The numbers of the states whose gradients before a step a level's kernel writes, never on level 0."""
    plan, inputs = plan_of(definition), definition.pull.inputs
    known = {k: plan.level(inputs.get(definition.before[k].index, {})) for k in plan.states(size)}
    return tuple(k for k, first in known.items() if _level_of(definition, max(first, 1), size) == level)
