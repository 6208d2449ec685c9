"""A small part of the standing attack, always the same, and whether the attack finds faults at all."""

import ast
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .attack import histories
from .attack.sequences import CELLS
from .attack.trial import attack, draw_of

FOLDER = Path(__file__).parent / "attack"
LOOPS = ("equations", "sequences", "gated", "cfc", "ltc", "quantum")
EXAMPLES = 25  # of each cell

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # of gradients that are larger than float32 has them
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("module", LOOPS)
def test_the_loops_share_no_code_with_the_package(module):
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom) and node.level:
            assert {node.module or name for name in names} <= set(LOOPS)
        elif names:
            roots = {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) else {name.split(".")[0] for name in names}
            assert roots <= {"numpy", "math", "functools", "collections", "typing"}


@pytest.mark.parametrize("cell", CELLS)
def test_random_configurations(cell):
    @settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_one(data):
        outcome = attack(lambda choices: data.draw(st.sampled_from(choices)), cell)
        assert not outcome.wrong, "\n".join(outcome.wrong)

    try_one()
