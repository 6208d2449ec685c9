"""Events around a training step: interrupts, other threads, other calls in between. The step's bits must not change.

Each history takes a problem and returns what is wrong, and how many interrupts the step survived.
"""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

import ember_mlx

from .problems import exact, loss, make

INTERRUPTS = 6
MANY = 1024  # sequences
REPETITIONS = 3  # of a step, in each of two threads


class Interrupted(KeyboardInterrupt):
    """Raised by the signal handler."""


def gradient_of(problem):
    """A function of the leaves; not yet evaluated."""
    return mx.value_and_grad(lambda leaves: loss(problem, leaves))


def step(problem):
    """The loss and all gradients as numbers."""
    return numbers(gradient_of(problem)(problem.leaves))


def numbers(result):
    value, gradients = result
    mx.eval(value, gradients)
    return {"loss": exact(value)} | {name: exact(a) for name, a in gradients.items()}


def differences(got, wanted):
    return [f"{name} changed by {np.nanmax(np.abs(got[name] - a)):.1e}" for name, a in wanted.items() if not same(got[name], a)]


def same(a, b):
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)


def another(problem):
    """A problem of the same kind with other numbers and a separate layer."""
    return make(problem.config | {"seed": problem.config["seed"] + 1})


def larger(problem):
    """A problem of the same kind, with enough sequences for several threads."""
    config = problem.config
    if not config["batched"]:
        return problem
    lengths = config["lengths"] and config["lengths"] * (MANY // config["B"] + 1)
    return make(config | {"B": MANY, "lengths": lengths and lengths[:MANY]})


def halved(problem):
    """Other leaves for the same layer."""
    return {name: a * 0.5 for name, a in problem.leaves.items()}


def the_same_step_again(problem):
    return differences(step(problem), step(problem)), 0


def two_forwards_before_two_backwards(problem):
    """One graph with two calls of the layer, differentiated by the leaves of each."""
    first, second = step(problem), numbers(gradient_of(problem)(halved(problem)))
    both = mx.grad(lambda pair: loss(problem, pair[0]) + loss(problem, pair[1]))
    one, other = both([problem.leaves, halved(problem)])
    mx.eval(one, other)
    wanted = {f"first {name}": a for name, a in first.items()} | {f"second {name}": a for name, a in second.items()}
    got = {f"first {name}": exact(a) for name, a in one.items()} | {f"second {name}": exact(a) for name, a in other.items()}
    return differences(got, {name: wanted[name] for name in got}), 0


def evaluated_in_another_order(problem):
    """Two gradients are asked for, and the second is computed first."""
    wanted = step(problem)
    first, second = gradient_of(problem)(problem.leaves), gradient_of(problem)(halved(problem))
    mx.eval(second)
    return differences(numbers(first), wanted), 0


def parameters_changed_before_the_backward(problem):
    """The forward has run, the layer gets other weights, and then the gradient is computed."""
    wanted = step(problem)
    result = gradient_of(problem)(problem.leaves)
    problem.layer.apply(lambda a: a + 1)
    mx.eval(problem.layer.parameters())
    return differences(numbers(result), wanted), 0


def other_shapes_between(problem):
    """The layer is called on longer and on more sequences, and on one step."""
    wanted = step(problem)
    for shape in ((7, 17), (1, 1)):
        x = mx.ones((*shape, problem.config["input_size"]))
        mx.eval(mx.grad(lambda x: problem.layer(x).sum())(x))
    return differences(step(problem), wanted), 0


def two_threads(problem):
    """Two layers train at the same time without affecting each other."""
    problem = larger(problem)
    problems, form = (problem, another(problem)), ember_mlx.current_backend()
    wanted = [step(one) for one in problems]

    def train(k):
        with ember_mlx.use_backend(form):
            return [fault for _ in range(REPETITIONS) for fault in differences(step(problems[k]), wanted[k])]

    with ThreadPoolExecutor(2) as pool:
        faults = [fault for found in pool.map(train, (0, 1)) for fault in found]
    return faults, 0


def interrupted(problem):
    """A step is interrupted at random times; the next one must be unaffected."""
    problem = larger(problem)
    wanted, moments, count, faults = step(problem), random.Random(problem.config["seed"]), 0, []
    other = another(problem)
    wanted_of_other, started = step(other), time.perf_counter()
    step(problem)
    longest = time.perf_counter() - started
    for _ in range(INTERRUPTS):
        try:
            with interrupt_after(moments.uniform(1e-5, longest)):
                step(problem)
        except Interrupted:
            count += 1
            faults += differences(step(other), wanted_of_other)
            faults += differences(step(problem), wanted)
    return faults, count


@contextmanager
def interrupt_after(seconds):
    """Interrupt the block after some time, unless it has ended."""

    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


HISTORIES = [
    the_same_step_again,
    two_forwards_before_two_backwards,
    evaluated_in_another_order,
    parameters_changed_before_the_backward,
    other_shapes_between,
    two_threads,
    interrupted,
]
