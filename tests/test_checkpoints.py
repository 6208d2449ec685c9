"""Checkpoints: a killed run resumes with identical results, and damaged files are detected."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import GRU, LSTM, CfC, SequenceModel
from ember_mlx.training import Sequences, fit, stream_batches

ROOT = Path(__file__).parents[1]
KILLS = 50

RUN = """
import sys, random
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_checkpoints import train
train(Path(sys.argv[1]), resume=True)
"""
"""Trains, or goes on, until it is killed; the last line of a whole run is "done"."""


def data(n=24):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, n)
    x = [rng.standard_normal((T, 2)) for T in lengths]
    return Sequences(x, np.array([a.sum() > 0 for a in x]).astype(np.int32), time_deltas=[np.abs(a[:, 0]) for a in x])


def model(units=6, dropout=0.2):
    """A model with dropout, whose random draws are part of a run's state."""
    mx.random.seed(0)
    return SequenceModel(CfC(units, 2, mixed_memory=True, backbone_units=8, backbone_dropout=dropout), nn.Dropout(0.1), outputs=2)


def train(folder, **options):
    trained = model()
    given = {"epochs": 4, "loss": "cross_entropy", "batch_size": 4, "validation": data(6), "patience": 9, "progress": False, "seed": 5}
    history = fit(trained, data(), checkpoint=folder, **given | {"every": 2} | options)
    return trained, history


def weights(trained):
    return {name: np.array(a) for name, a in tree_flatten(trained.parameters())}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def numbers(history):
    return {name: values for name, values in history.items() if name != "seconds"}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_killed_at_random_ends_as_one_that_was_not(tmp_path, whole):
    """Each process is killed some time after a checkpoint: in a step, at the end of an epoch, or while writing a file."""
    rng, kills, script = random.Random(0), 0, RUN.format(root=str(ROOT))
    for _ in range(4 * KILLS + 4):
        if kills == KILLS:
            break
        folder = tmp_path / "run"
        command = [sys.executable, "-c", script, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            before, began = newest(folder), time.monotonic()
            while process.poll() is None and newest(folder) == before and time.monotonic() - began < 60:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            errors = process.communicate(timeout=60)[1]
            kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if process.returncode == 0 or newest(folder) == newest(tmp_path / "whole", last=True):
            check_same_end(folder, whole)  # and start again
            for path in folder.iterdir():
                path.unlink()
    assert kills == KILLS
    check_same_end(tmp_path / "run", whole)


def newest(folder, last=False):
    return "step-000000024.safetensors" if last else max((path.name for path in folder.glob("step-*")), default=None)


def check_same_end(folder, whole):
    trained, history = train(folder, resume=True)
    assert same(weights(trained), weights(whole[0]))
    assert numbers(history) == numbers(whole[1])
    assert history.best_epoch == whole[1].best_epoch


@pytest.mark.parametrize("step", [2, 6, 8, 12, 24])
def test_a_run_goes_on_from_every_checkpoint(tmp_path, whole, step):
    """In the middle of an epoch, at its end, and after the last epoch."""
    train(tmp_path, keep=100)
    for path in tmp_path.iterdir():
        if int(path.name[5:14]) > step:
            path.unlink()
    check_same_end(tmp_path, whole)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_goes_on_too(tmp_path, precision):
    expected, _ = train(tmp_path / "whole", precision=precision)
    train(tmp_path / "run", precision=precision, epochs=2)
    resumed, _ = train(tmp_path / "run", precision=precision, resume=True)
    assert same(weights(resumed), weights(expected))


def test_states_that_go_on_are_part_of_it(tmp_path):
    """Consecutive batches, interrupted between two of them."""
    x = np.random.default_rng(0).standard_normal((2, 40, 1))

    def run(folder, **options):
        mx.random.seed(0)
        trained = SequenceModel(LSTM(1, 4), GRU(4, 3), outputs=1)
        windows = stream_batches(x, np.cumsum(x, axis=1), steps=5)
        fit(trained, windows, epochs=3, loss="mse", stateful=True, progress=False, checkpoint=folder, every=3, keep=50, **options)
        return weights(trained)

    expected = run(tmp_path)
    for path in tmp_path.iterdir():
        if int(path.name[5:14]) > 9:  # of 8 a epoch
            path.unlink()
    assert same(run(tmp_path, resume=True), expected)


def test_ctrl_c_and_resume(tmp_path, whole):
    steps = []

    def loss(predictions, y):
        steps.append(None)
        if len(steps) == 11:
            signal.raise_signal(signal.SIGINT)
        return nn.losses.cross_entropy(predictions, y, reduction="mean")

    _, history = train(tmp_path, loss=loss, every=None)
    assert history.stopped == "interrupted"
    check_same_end(tmp_path, whole)


def test_more_epochs_than_at_first(tmp_path, whole):
    train(tmp_path, epochs=2)
    check_same_end(tmp_path, whole)


def test_other_optimizers_and_schedules_go_on(tmp_path):
    def run(folder, epochs, **options):
        trained = model()
        schedule = optim.cosine_decay(1e-2, 24)
        given = {"loss": "cross_entropy", "batch_size": 4, "progress": False, "optimizer": optim.AdamW(schedule, bias_correction=True)}
        fit(trained, data(), epochs=epochs, checkpoint=folder, **given | options)
        return weights(trained)

    expected = run(tmp_path / "whole", 4)
    run(tmp_path / "run", 2)
    assert same(run(tmp_path / "run", 4, resume=True), expected)


def test_the_newest_stay(tmp_path):
    train(tmp_path, keep=2)
    assert files(tmp_path) == ["step-000000022.safetensors", "step-000000024.safetensors"]


def test_one_an_epoch_unless_told(tmp_path):
    train(tmp_path, every=None, keep=100)
    assert files(tmp_path) == [f"step-{step:09}.safetensors" for step in (6, 12, 18, 24)]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:50])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    mx.save_safetensors(str(path), {"weight": mx.zeros(3)})


def no_safetensors(path):
    path.write_bytes(os.urandom(4096))


def other_version(path):
    arrays, metadata = mx.load(str(path), return_metadata=True)
    told = json.loads(metadata["ember_mlx"])
    arrays = {name: mx.array(np.array(a)) for name, a in arrays.items()}
    mx.save_safetensors(str(path), arrays, {"ember_mlx": json.dumps(told | {"format": 99})})


SPOILED = {
    cut: "it is truncated",
    cut_in_the_header: "it is truncated, or not a safetensors file",
    empty: "it is truncated, or not a safetensors file",
    foreign: "it is not a checkpoint of ember_mlx",
    no_safetensors: "it is truncated, or not a safetensors file",
    other_version: "its format is 99, this version reads",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda f: f.__name__)
def test_a_bad_file_is_named_and_the_one_before_it_taken(tmp_path, whole, spoil):
    train(tmp_path, epochs=3)
    path = max(tmp_path.iterdir())
    spoil(path)
    with pytest.warns(RuntimeWarning, match=rf"\[checkpoint\] \S*{path.name} cannot be read; using the one before it: {SPOILED[spoil]}"):
        trained, history = train(tmp_path, resume=True)
    assert same(weights(trained), weights(whole[0]))
    assert numbers(history) == numbers(whole[1])


def test_where_no_file_can_be_read_nothing_is_begun_silently(tmp_path):
    train(tmp_path, epochs=1, keep=1)
    cut(next(tmp_path.iterdir()))
    with (
        pytest.raises(ValueError, match=r"\[fit\] resume must find a checkpoint in \S+ that can be read, got none of 1"),
        pytest.warns(RuntimeWarning, match="cannot be read"),
    ):
        train(tmp_path, resume=True)


def test_a_new_run_in_a_folder_of_another_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"\[fit\] checkpoint must be a folder without checkpoints if resume is False, got \S+"):
        train(tmp_path)


OTHER = {
    "another model": (lambda folder: fit_with(folder, model(units=7)), r"\[fit\] model must be the one in \S+, whose layers\.0\.\S+ is \("),
    "another seed": (lambda folder: train(folder, seed=6, resume=True), r"\[fit\] seed must be 5, as in the run of \S+, got 6"),
    "another batch size": (lambda folder: train(folder, batch_size=8, resume=True), r"\[fit\] batch_size must be 4"),
    "another precision": (lambda folder: train(folder, precision="bfloat16", resume=True), r"\[fit\] precision must be float32"),
    "another optimizer": (
        lambda folder: train(folder, optimizer=optim.SGD(0.1), resume=True),
        r"\[fit\] optimizer must be of the kind in \S+, got another one: they differ in ",
    ),
    "other data": (lambda folder: fit_with(folder, model(), data(20)), r"\[fit\] sequences must be 24"),
}


def fit_with(folder, trained, train_data=None):
    options = {"epochs": 4, "loss": "cross_entropy", "batch_size": 4, "seed": 5, "progress": False}
    fit(trained, train_data or data(), checkpoint=folder, resume=True, **options)


@pytest.mark.parametrize("case", OTHER)
def test_a_run_of_something_else_is_refused(tmp_path, case):
    train(tmp_path, epochs=1)
    before = files(tmp_path)
    action, message = OTHER[case]
    with pytest.raises(ValueError, match=message):
        action(tmp_path)
    assert files(tmp_path) == before


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.test_checkpoints import files, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
train(folder, epochs=1)
before = {{path.name: path.read_bytes() for path in folder.iterdir()}}
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    train(folder, resume=True)
except OSError as error:
    print("refused:", error)
assert {{path.name: path.read_bytes() for path in folder.iterdir()}} == before
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of the size of files stands for a full disk")
def test_where_the_disk_is_full_the_old_ones_stay(tmp_path):
    command = [sys.executable, "-c", FULL_DISK.format(root=str(ROOT)), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("refused: [checkpoint] ")
    assert "could not be written; older checkpoints are unchanged" in result.stdout


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"\[checkpoint\] checkpoint must be a folder, got \S+taken"):
        train(tmp_path / "taken")
