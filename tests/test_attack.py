"""A small fixed part of the attack, and tests that the attack finds planted faults."""

import ast
import time
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ember_mlx import cells
from ember_mlx.layers import arguments, base
from ember_mlx.scans import batched, dispatch
from ember_mlx.scans.pytrees import leaves_of

from .attack import recurrent
from .attack.sequences import CELLS
from .attack.trial import attack, draw_of

FOLDER = Path(__file__).parent / "attack"
LOOPS = ("equations", "sequences", "gated", "recurrent", "cfc", "ltc", "quantum")
EXAMPLES = 25  # of each cell
WITH_TIME = ("CfC", "LTC", "LQNet")
MOST_TRIED = 60

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # an interrupt within the collector of garbage
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
    @settings(
        derandomize=True,
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to make a failure smaller takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_one(data):
        outcome = attack(lambda choices: data.draw(st.sampled_from(choices)), cell, thorough=False)
        assert not outcome.wrong, f"{outcome.wrong} of {outcome.config}"

    try_one()


def of_form(change_run=None, change_run_back=None):
    """A planted fault: the NumPy form of every cell with another forward or backward."""

    def plant(monkeypatch):
        forms = dispatch._numpy_forms

        def planted(*arguments):
            run, run_back = forms(*arguments)
            return change_run(run) if change_run else run, change_run_back(run_back) if change_run_back else run_back

        monkeypatch.setattr(dispatch, "_numpy_forms", planted)

    return plant


def wrong_by_a_thousandth(run):
    return lambda leaves: [1.001 * a for a in run(leaves)]


def without_a_gradient(run_back):
    def planted(leaves, outputs, cotangents):
        gradients = run_back(leaves, outputs, cotangents)
        return gradients | {name: mx.zeros_like(a) for name, a in gradients.items() if name in ("dt", "h0", "v0", "h_c0")}

    return planted


def hurt_by_an_interrupt():
    hurt = []

    def change(run):
        def planted(leaves):
            try:
                time.sleep(1e-3)
                return [a + 1e-6 * len(hurt) for a in run(leaves)]
            except BaseException:
                hurt.append(1)
                raise

        return planted

    return change


def by_the_last_call():
    calls = []

    def change(run):
        def planted(leaves):
            calls.append(1)
            return run(leaves)

        return planted

    def change_back(run_back):
        def planted(leaves, outputs, cotangents):
            late = len(calls) > 1
            calls.clear()
            return run_back(leaves, outputs, [1.001 * a if late else a for a in cotangents])

        return planted

    return change, change_back


def shared_by_threads():
    """Buffers shared by all calls, in which each temporarily stores its inputs."""
    memory = {}

    def change(run):
        def planted(leaves):
            here = memory["here"] = object()
            time.sleep(2e-3)
            return [a if memory["here"] is here else 1.001 * a for a in run(leaves)]

        return planted

    return change


def without_values(scan):
    """Inside mx.vmap and the like, where arrays have no values."""

    def planted(recurrence, spec, arrays, keep=True):
        outputs = scan(recurrence, spec, arrays, keep)
        return outputs if dispatch.can_evaluate(leaves_of(arrays)) else [1.001 * a for a in outputs]

    return planted


def replaced(module, name, make):
    """A planted fault: a function of the package replaced by a modification of it."""
    return lambda monkeypatch: monkeypatch.setattr(module, name, make(getattr(module, name)))


def one_more(read):
    def planted(owner, lengths, T, B, batched):
        found = read(owner, lengths, T, B, batched)
        return None if found is None else mx.minimum(found + 1, T)

    return planted


# what is planted, and what the attack must say of it
PLANTS = {
    "values": (of_form(wrong_by_a_thousandth), "numpy outputs: y"),
    "a gradient of zero": (of_form(None, without_a_gradient), "numpy gradient: gradient of"),
    "lengths too long by one": (replaced(arguments, "read_lengths", one_more), "outputs: y"),
    "times not used": (replaced(arguments, "_read_time_deltas", lambda read: lambda *given: mx.ones_like(read(*given))), "outputs: y"),
    "states not used": (replaced(base, "read_state", lambda read: lambda *given: [None] * len(read(*given))), "outputs: y"),
    "the ops form": (replaced(batched, "scan", lambda scan: lambda *given: [1.001 * a for a in scan(*given)]), "ops outputs: y"),
    "a push": (replaced(dispatch, "jvp_of_given", lambda jvp: lambda *given: [1.01 * a for a in jvp(*given)]), "push"),
    "memory of an interrupted step": (of_form(hurt_by_an_interrupt()), "interrupted: "),
    "inside a transformation": (replaced(batched, "scan", without_values), "mapped"),
    "memory of another thread": (of_form(shared_by_threads()), "two_threads: "),
    "memory of the call before": (of_form(*by_the_last_call()), "two_forwards_before_two_backwards: "),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_the_attack_finds_a_fault_that_is_planted(monkeypatch, plant):
    change, words = PLANTS[plant]
    change(monkeypatch)
    for index in range(MOST_TRIED):
        cell = WITH_TIME[index % len(WITH_TIME)]
        if any(words in fault for fault in attack(draw_of(0, index), cell, thorough=False).wrong):
            monkeypatch.undo()
            assert not any(words in fault for fault in attack(draw_of(0, index), cell, thorough=False).wrong)
            return
    pytest.fail(f"{MOST_TRIED} configurations, and nothing like {words!r}")


def test_every_cell_of_the_package_is_attacked():
    assert set(recurrent.CELLS) == set(recurrent.PRODUCTS) == set(cells.__all__), (
        "add it to CELLS, PRODUCTS and step() of tests/attack/recurrent.py"
    )
