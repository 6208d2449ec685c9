"""An interrupted training step leaves no running threads, and no buffers that the next step uses."""

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx import GRU, LSTM, LTC, RNN, AutoNCPMap, CfC, CTRQNet, LQNet, StrideAwareCfC, StrideAwareLTC, bucket_batches
from ember_mlx.scans.ltc import reference as ltc_reference
from ember_mlx.scans.threads import Going, run_parts

INTERRUPTS = 300
LAYERS = {
    "rnn": lambda: RNN(3, 8),
    "lstm": lambda: LSTM(3, 8, num_layers=2, bidirectional=True),
    "gru": lambda: GRU(3, 8),
    "cfc": lambda: CfC(8, 3, mixed_memory=True, return_sequences=True),
    "cfc-ncp": lambda: CfC(AutoNCPMap(8, 2, seed=1), 3, return_sequences=True),
    "ltc": lambda: LTC(24, 3, ode_unfolds=2),
    "ltc-ncp": lambda: LTC(AutoNCPMap(40, 4, sparsity_level=0.2, seed=1), 3, ode_unfolds=2),
    "lqnet": lambda: LQNet(8, input_size=3),
    "ctrqnet": lambda: CTRQNet(8, input_size=3),
    "strides-cfc": lambda: StrideAwareCfC(6, [1, 2], 3, return_sequences=True),
    "strides-ltc": lambda: StrideAwareLTC(24, [1, 2], 3, return_sequences=True, ode_unfolds=2),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


class Interrupted(BaseException):
    """Raised by the signal handler, like KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def numpy_form():
    with ember_mlx.use_backend("numpy"):
        yield


@contextmanager
def interrupted_after(seconds):
    """Interrupt the block after some time, unless it has ended."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture
def interrupts():
    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def step_of(layer):
    options = {"key": mx.random.key(1)} if isinstance(layer, LQNet) else {}
    run = nn.value_and_grad(layer, lambda m, x: (m(x, **options) ** 2).mean())

    def step(x):
        loss, gradients = run(layer, x)
        mx.eval(loss, gradients)
        return {"loss": np.array(loss)} | {path: np.array(a) for path, a in tree_flatten(gradients)}

    return step


def assert_same(got, expected):
    for path, a in expected.items():
        np.testing.assert_array_equal(got[path], a, err_msg=path)


@pytest.fixture
def working(monkeypatch):
    """The other threads that currently compute an LTC."""
    found, adding = set(), threading.Lock()

    def counted(function):
        def run(*arguments):
            if threading.current_thread() is threading.main_thread():
                return function(*arguments)
            here = object()
            with adding:
                found.add(here)
            try:
                return function(*arguments)
            finally:
                with adding:
                    found.discard(here)

        return run

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(ltc_reference, name, counted(getattr(ltc_reference, name)))
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt within the collector of garbage
@every_layer
def test_the_step_after_an_interrupted_one_is_as_ever(make, interrupts, working):
    moments = random.Random(0)
    layer, large, small = make(), 30 * mx.random.normal((96, 6, 3)), mx.random.normal((64, 3, 3))
    mx.eval(layer.parameters(), large, small)
    step = step_of(layer)
    expected = step(small)
    step(large)
    started = time.perf_counter()
    step(large)
    longest, count = time.perf_counter() - started, 0
    while count < INTERRUPTS:
        try:
            with interrupted_after(moments.uniform(1e-4, longest)):
                step(large)
        except Interrupted:
            count += 1
            assert not working
            assert_same(step(small), expected)


def test_layers_that_train_in_threads_while_one_is_interrupted(interrupts):
    layers = [LAYERS[name]() for name in ("ltc", "cfc", "lstm", "ltc")]
    x = mx.random.normal((96, 6, 3))
    mx.eval([layer.parameters() for layer in layers], x)
    steps = [step_of(layer) for layer in layers]
    expected = [step(x) for step in steps]
    moments, ended = random.Random(0), threading.Event()

    def go_on(k):
        count = 0
        while not ended.is_set() or count == 0:
            assert_same(steps[k](x), expected[k])
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(go_on, k) for k in (1, 2)]
        try:
            for _ in range(30):
                try:
                    with interrupted_after(moments.uniform(1e-4, 0.03)):
                        steps[0](x)
                        steps[3](x)
                except Interrupted:
                    pass
        finally:
            ended.set()
        assert all(other.result() > 0 for other in others)
    assert_same(steps[0](x), expected[0])


def test_an_error_in_one_part_stops_the_others():
    begun, stopped = [], []

    def work(k, going):
        if k == failing:
            time.sleep(0.01)
            raise ArithmeticError(k)
        begun.append(k)
        try:
            while True:
                going.on()
                time.sleep(1e-3)
        except BaseException as error:
            stopped.append(type(error).__name__)
            raise

    for failing in range(3):
        begun.clear()
        stopped.clear()
        with pytest.raises(ArithmeticError, match=str(failing)):
            run_parts(work, [0, 1, 2])
        assert stopped == ["Stopped"] * len(begun)


def test_the_threads_have_ended_when_an_interrupt_leaves(interrupts):
    running = set()

    def work(k, going):
        running.add(k)
        try:
            while True:
                going.on()
                time.sleep(1e-3)
        finally:
            time.sleep(0.02 * k)
            running.discard(k)

    with pytest.raises(Interrupted), interrupted_after(0.05):
        run_parts(work, [0, 1, 2])
    assert not running


def test_without_threads_to_be_had_the_parts_run_here(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    here = threading.get_ident()
    assert run_parts(lambda k, going: (k, threading.get_ident()), [1, 2, 3]) == [(1, here), (2, here), (3, here)]
    Going().on()


def test_a_generator_of_batches_may_be_left_half_way():
    layer, lengths = LSTM(3, 4), [2, 5, 3, 4]
    step, x = step_of(layer), mx.random.normal((2, 5, 3))
    expected = step(x)
    batches = bucket_batches(lengths, 1, seed=0)
    next(iter(batches))
    del batches
    assert_same(step(x), expected)
