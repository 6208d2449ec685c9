"""fit, evaluate and predict: learning, masking, stopping, and errors."""

import signal
import threading
import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import GRU, LSTM, LTC, AutoNCPMap, CfC, SequenceModel
from ember_mlx.training import Batch, History, Sequences, evaluate, fit, predict, stream_batches
from ember_mlx.training import loop as training_loop


def signs(n=48, steps=10, seed=0):
    """Sequences whose class is the sign of the sum of their last two steps."""
    x = np.random.default_rng(seed).standard_normal((n, steps, 1)).astype(np.float32)
    return Sequences(x, (x[:, -2:].sum(axis=(1, 2)) > 0).astype(np.int32))


def cfc(outputs=2, units=8, seed=0, **options):
    mx.random.seed(seed)
    return SequenceModel(CfC(units, 1, **options), outputs=outputs)


def weights(model):
    return {name: np.array(a) for name, a in tree_flatten(model.parameters())}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def quiet(model, data, **options):
    return fit(model, data, **{"epochs": 2, "loss": "cross_entropy", "progress": False} | options)


def test_the_default_optimizer_learns():
    model, data = cfc(units=16), signs(256)
    history = quiet(model, data, epochs=12, learning_rate=5e-3, validation=signs(seed=1), metrics=["accuracy"])
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert history["validation_accuracy"][-1] > 0.8
    assert {len(values) for values in history.values()} == {12}
    assert list(history) == ["loss", "validation_loss", "validation_accuracy", "seconds"]


def test_adam_corrects_its_bias(monkeypatch):
    made, adam = [], optim.Adam
    monkeypatch.setattr(training_loop.optim, "Adam", lambda *given, **options: made.append(options) or adam(*given, **options))
    quiet(cfc(), signs(8), epochs=1)
    assert made == [{"bias_correction": True}]


def test_a_step_is_that_of_a_plain_loop():
    data, model, plain = signs(32), cfc(), cfc()
    quiet(model, data, epochs=1, batch_size=32, clip_norm=0.05, optimizer=optim.SGD(0.5))
    batch = next(data.batches(32))
    gradients = nn.value_and_grad(plain, lambda m: nn.losses.cross_entropy(m(batch.x), batch.y, reduction="mean"))(plain)[1]
    gradients, norm = optim.clip_grad_norm(gradients, 0.05)
    assert norm.item() > 0.05  # else nothing was clipped
    optim.SGD(0.5).update(plain, gradients)
    assert all(np.allclose(a, weights(plain)[name], atol=1e-6) for name, a in weights(model).items())


def test_one_seed_one_result():
    first, again, other = cfc(), cfc(), cfc()
    quiet(first, signs())
    quiet(again, signs())
    quiet(other, signs(), seed=1)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_padding_and_masked_targets_count_nowhere(name):
    rng = np.random.default_rng(0)
    x, y, lengths = rng.standard_normal((6, 5, 1)), rng.standard_normal((6, 5, 2)), [1, 5, 2, 3, 5, 4]
    mask = rng.random((6, 5)) < 0.7
    spoiled_x, spoiled_y = x.copy(), y.copy()
    for row, n in enumerate(lengths):
        spoiled_x[row, n:], spoiled_y[row, n:] = 1e3, 1e3
    spoiled_y[~mask] = -1e3
    results = []
    for given_x, given_y in ((x, y), (spoiled_x, spoiled_y)):
        model = cfc(outputs=2, return_sequences=True)
        data = Sequences(given_x, given_y, lengths=lengths, mask=mask)
        history = quiet(model, data, loss=name, batch_size=3)
        results.append((weights(model), history["loss"], evaluate(model, data, ["mse", "mae"])))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    valid = mask & (np.arange(5) < np.array(lengths)[:, None])
    predicted = np.array(model(mx.array(x.astype(np.float32)), lengths=lengths))
    assert results[0][2]["mse"] == pytest.approx(((predicted - y)[valid] ** 2).mean(), rel=1e-5)


def test_lists_of_unequal_sequences_are_those_with_lengths():
    rng = np.random.default_rng(0)
    lengths = [3, 7, 1, 5]
    x, y, dt = ([rng.standard_normal((n, *more)) for n in lengths] for more in ((2,), (1,), ()))
    dt = [np.abs(a) for a in dt]
    padded = [np.stack([np.pad(a, [(0, 7 - len(a))] + [(0, 0)] * (a.ndim - 1)) for a in arrays]) for arrays in (x, y, dt)]
    mx.random.seed(0)
    models = [SequenceModel(CfC(4, 2, return_sequences=True), outputs=1) for _ in range(2)]
    models[1].update(models[0].parameters())
    quiet(models[0], Sequences(x, y, dt), loss="mse", batch_size=2)
    quiet(models[1], Sequences(*padded, lengths=lengths), loss="mse", batch_size=2)
    assert same(*map(weights, models))
    outputs = predict(models[0], Sequences(x, time_deltas=dt))
    assert [a.shape for a in outputs] == [(n, 1) for n in lengths]


def test_mlx_arrays_numpy_arrays_and_batches_are_the_same_data():
    data, results = signs(12), []
    whole = next(data.batches(12))
    for given in (data, Sequences(whole.x, whole.y), [(whole.x, whole.y)], [{"x": data.x, "y": data.y}], [Batch(whole.x, whole.y)]):
        model = cfc()
        quiet(model, given, batch_size=12, epochs=1)
        results.append(weights(model))
        assert np.allclose(predict(model, given), np.array(model(whole.x))[: len(whole.x)], atol=1e-6) or isinstance(given, Sequences)
    assert all(np.allclose(a[name], results[2][name], atol=1e-6) for a in results for name in a)


def test_half_precision_and_doubles_as_data():
    for dtype in (np.float16, np.float64):
        data = Sequences(signs(8).x.astype(dtype), signs(8).y)
        assert next(data.batches(8)).x.dtype == (mx.float16 if dtype == np.float16 else mx.float32)
        quiet(cfc(), data, epochs=1)


def test_ltc_weights_stay_in_their_ranges():
    layer = LTC(AutoNCPMap(8, 1, seed=0), 1, ode_unfolds=1, return_sequences=False, implicit_param_constraints=False)
    layer.gleak = layer.gleak * 0 + 1e-3
    history = quiet(layer, Sequences(signs(16).x, np.full((16, 1), -30.0)), loss="mse", learning_rate=0.5, clip_norm=None, epochs=3)
    assert history["loss"][-1] < history["loss"][0]
    assert all(getattr(layer, name).min().item() >= 0 for name in ("gleak", "cm", "w", "sensory_w"))


def test_early_stopping_restores_the_best_weights():
    seen, data = [], signs(24)
    model = cfc(units=16)
    validation = Sequences(signs(24, seed=5).x, np.random.default_rng(0).integers(0, 2, 24).astype(np.int32))  # nothing to be learned
    history = quiet(
        model,
        data,
        validation=validation,
        epochs=60,
        patience=3,
        learning_rate=5e-3,
        callbacks=[lambda model, history: seen.append(weights(model))],
    )
    assert history.stopped == "patience"
    assert history.best_epoch == int(np.argmin(history["validation_loss"])) + 1 == len(history["loss"]) - 3
    assert same(weights(model), seen[history.best_epoch - 1])
    assert evaluate(model, validation, loss="cross_entropy")["loss"] == pytest.approx(min(history["validation_loss"]), rel=1e-6)


def test_accuracy_is_better_where_it_is_larger():
    history = quiet(cfc(), signs(), validation=signs(), metrics=["accuracy"], monitor="validation_accuracy", patience=2, epochs=20)
    assert history.best_epoch == int(np.argmax(history["validation_accuracy"])) + 1


def test_a_callback_ends_training():
    history = quiet(cfc(), signs(), epochs=9, callbacks=[lambda model, history: len(history["loss"]) == 2])
    assert history.stopped == "callback"
    assert len(history["loss"]) == 2


def test_training_mode_ends_with_the_run():
    model, modes = cfc(backbone_dropout=0.5), []
    model.eval()
    quiet(model, signs(), epochs=1, loss=lambda p, y: modes.append(model.training) or nn.losses.cross_entropy(p, y, reduction="mean"))
    assert modes[0] is False  # the rehearsal
    assert all(modes[1:])
    assert not model.training


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_with_the_weights_before_it(number):
    data = signs(12)
    spoiled = Sequences(data.x.copy(), data.x.sum(axis=1))
    spoiled.y[7] = number
    model, seen = cfc(outputs=1), []
    order = np.concatenate(spoiled.order(4, seed=[0, 0]))
    step = int(np.flatnonzero(order == 7)[0]) // 4 + 1
    before = cfc(outputs=1)
    with pytest.raises(FloatingPointError, match=rf"\[fit\] the loss must be finite, got (nan|inf) in step {step}, epoch 1\."):
        quiet(model, spoiled, loss="mse", batch_size=4, callbacks=[lambda *given: seen.append(given)])
    assert not seen
    good = [spoiled.batch(index) for index in spoiled.order(4, seed=[0, 0])[: step - 1]]
    if good:
        quiet(before, good, loss="mse", epochs=1)
    assert same(weights(model), weights(before))
    assert all(np.isfinite(a).all() for a in weights(model).values())


def test_a_gradient_that_is_not_finite_is_named():
    model = cfc(outputs=1)
    before = weights(model)
    data = Sequences(signs(8).x, np.zeros((8, 1)))
    with pytest.raises(FloatingPointError, match=r"\[fit\] the gradient of layers\.\S+ must be finite, got .* in step 1, epoch 1"):
        quiet(model, data, loss=lambda p, y: mx.sqrt(mx.abs(p - mx.stop_gradient(p))).mean())
    assert same(weights(model), before)


def test_ctrl_c_ends_after_the_step():
    model, steps = cfc(), []

    def loss(predictions, y):
        steps.append(len(y))
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)
        return nn.losses.cross_entropy(predictions, y, reduction="mean")

    history = quiet(model, signs(32), loss=loss, batch_size=8, epochs=50)
    assert history.stopped == "interrupted"
    assert len(steps) == 5  # one of them is the rehearsal
    plain = cfc()
    quiet(plain, [signs(32).batch(index) for index in signs(32).order(8, seed=[0, 0])], epochs=1)
    assert same(weights(model), weights(plain))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_at_once():
    def loss(predictions, y):
        if model.training:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return nn.losses.cross_entropy(predictions, y, reduction="mean")

    model = cfc()
    with pytest.raises(KeyboardInterrupt):
        quiet(model, signs(32), loss=loss)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_trains_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(quiet(cfc(), signs(8), epochs=1)))
    thread.start()
    thread.join(60)
    assert found[0].stopped == "epochs"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_with_weights_in_float32(precision):
    model, data = cfc(units=16), signs(256)
    seen = set()
    history = quiet(
        model,
        data,
        epochs=12,
        learning_rate=5e-3,
        precision=precision,
        validation=signs(seed=1),
        metrics=["accuracy"],
        loss=lambda p, y: seen.add(model.layers[-1].weight.dtype) or nn.losses.cross_entropy(p, y, reduction="mean"),
    )
    assert history["validation_accuracy"][-1] > 0.8
    assert {a.dtype for _, a in tree_flatten(model.parameters())} == {mx.float32}
    assert getattr(mx, precision) in seen


def test_a_step_that_overflows_in_float16_is_left_out():
    scales = []

    def loss(predictions, y):
        scales.append(None)
        huge = 1e9 if len(scales) == 3 else 1.0  # of the second step's gradients alone
        return (huge * (predictions - mx.stop_gradient(predictions))).sum() + nn.losses.cross_entropy(predictions, y, reduction="mean")

    model = cfc()
    quiet(model, signs(32), loss=loss, batch_size=8, epochs=1, precision="float16")
    assert len(scales) == 5
    assert all(np.isfinite(a).all() for a in weights(model).values())


def test_truncated_backpropagation_carries_the_states():
    x = np.random.default_rng(0).standard_normal((3, 25, 1)).astype(np.float32)
    model = SequenceModel(GRU(1, 6), LSTM(6, 4), outputs=1)
    whole = np.array(model(mx.array(x)))
    windows = stream_batches(x, np.cumsum(x, axis=1), steps=10)
    found, states = [], None
    for batch in windows:
        y, states = model(batch.x, states, return_state=True)
        found.append(np.array(y))
    assert np.allclose(np.concatenate(found, axis=1), whole, atol=1e-6)
    losses = evaluate(model, windows, loss="mse", stateful=True)
    assert losses["loss"] == pytest.approx(((whole - np.cumsum(x, axis=1)) ** 2).mean(), rel=1e-5)
    history = quiet(model, windows, loss="mse", stateful=True, epochs=20, learning_rate=1e-2)
    assert history["loss"][-1] < 0.7 * history["loss"][0]


def test_schedules_are_taken():
    rates = []
    quiet(cfc(), signs(16), batch_size=8, learning_rate=lambda step: rates.append(step) or mx.array(1e-3))
    assert len(rates) >= 4


def test_a_model_of_mlx_nn_alone():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.RNN(1, 8), nn.Linear(8, 2)

        def __call__(self, x):
            return self.out(self.rnn(x)[:, -1])

    mx.random.seed(0)
    model = Last()
    assert quiet(model, signs(), epochs=8, learning_rate=1e-2)["loss"][-1] < 0.69
    with pytest.raises(TypeError, match=r"\[fit\] train must go without lengths, which Last does not take"):
        quiet(model, Sequences(signs().x, signs().y, lengths=[4] * 48))


METRICS = {
    "accuracy": (np.array([[0.2, 0.9], [3, 1], [0, 1]]), np.array([1, 0, 0]), 2 / 3),
    "mae": (np.array([[1.0], [3.0]]), np.array([0.0, 5.0]), 1.5),
    "mse": (np.array([1.0, 3.0]), np.array([0.0, 5.0]), 2.5),
    "auc": (np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]), 0.75),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    predictions, y, expected = METRICS[name]

    class Fixed(nn.Module):
        def __call__(self, x):
            return mx.array(predictions.astype(np.float32))

    data = Sequences(np.zeros((len(y), 2, 1)), y)
    assert evaluate(Fixed(), data, [name]) == {name: pytest.approx(expected)}


def test_auc_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 6, 60) / 4, rng.integers(0, 2, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[y == 1] for b in scores[y == 0]]

    class Fixed(nn.Module):
        def __call__(self, x):
            return mx.array(scores.astype(np.float32))[:, None]

    assert evaluate(Fixed(), Sequences(np.zeros((60, 2, 1)), y), ["auc"])["auc"] == pytest.approx(np.mean(pairs))


def test_history_draws(tmp_path):
    pytest.importorskip("matplotlib")
    history = quiet(cfc(), signs(), validation=signs(), metrics=["accuracy"])
    history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\[History\] plot must be called after at least one epoch"):
        History().plot()


def test_without_matplotlib_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        History(loss=[1.0]).plot()


def test_a_line_an_epoch_where_there_is_no_terminal(capsys):
    fit(cfc(), signs(8), epochs=2, loss="cross_entropy")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    quiet(cfc(), signs(8))
    assert capsys.readouterr().out == ""


X = np.zeros((4, 3, 1), np.float32)
Y = np.array([0, 1, 0, 1])
BAD_DATA = {
    "integers": (lambda: Sequences(np.zeros((2, 3, 1), int)), TypeError, r"\[Sequences\] x must hold floating-point numbers, got int64"),
    "two axes": (lambda: Sequences(np.zeros((2, 3))), ValueError, r"\[Sequences\] x must have shape \(N, T, I\)"),
    "no sequence": (lambda: Sequences(np.zeros((0, 3, 1))), ValueError, r"\[Sequences\] x must hold at least one sequence"),
    "empty list": (lambda: Sequences([]), ValueError, r"\[Sequences\] x must hold at least one sequence"),
    "no step": (lambda: Sequences([np.zeros((0, 1)), np.zeros((2, 1))]), ValueError, r"\[Sequences\] x\[0\] must have shape"),
    "other features": (lambda: Sequences([np.zeros((2, 1)), np.zeros((3, 2))]), ValueError, r"x must hold arrays of one dtype"),
    "text": (lambda: Sequences("abc"), TypeError, r"\[Sequences\] x must be a NumPy or MLX array"),
    "number of targets": (lambda: Sequences(X, Y[:3]), ValueError, r"\[Sequences\] y must hold N = 4 entries, like x, got 3"),
    "complex targets": (lambda: Sequences(X, Y + 1j), TypeError, r"\[Sequences\] y must hold numbers"),
    "lengths too long": (lambda: Sequences(X, Y, lengths=[1, 2, 3, 4]), ValueError, r"lengths must lie in 1..T = 1..3, got 4 at 3"),
    "lengths of zero": (lambda: Sequences(X, Y, lengths=[1, 0, 3, 3]), ValueError, r"lengths must lie in 1..T = 1..3, got 0 at 1"),
    "lengths of floats": (lambda: Sequences(X, Y, lengths=[1.0, 2, 3, 3]), TypeError, r"lengths must hold integers"),
    "too few lengths": (lambda: Sequences(X, Y, lengths=[1, 2]), ValueError, r"lengths must have shape \(N,\) = \(4,\)"),
    "negative times": (lambda: Sequences(X, Y, -np.ones((4, 3))), ValueError, r"time_deltas must be finite and not negative, got -1"),
    "times of another shape": (lambda: Sequences(X, Y, np.ones((4, 2))), ValueError, r"time_deltas must have 3 steps, like x, got 2"),
    "mask of numbers": (lambda: Sequences(X, Y, mask=[1, 0, 1, 1]), TypeError, r"mask\[0\] must hold True and False"),
    "mask of another shape": (
        lambda: Sequences(X, Y, mask=np.ones((4, 3), bool)),
        ValueError,
        r"mask\[0\] must have the first axes of y\[0\]",
    ),
    "mask without targets": (lambda: Sequences(X, mask=np.ones(4, bool)), ValueError, r"mask must be None without targets"),
    "int64 targets": (lambda: Sequences(X, Y + 2**40), ValueError, r"\[Sequences\] y must fit into int32"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_named(case):
    make, kind, message = BAD_DATA[case]
    with pytest.raises(kind, match=message):
        make()


GOOD = {"epochs": 1, "loss": "cross_entropy", "progress": False}
DATA = Sequences(X, Y)
BAD_FITS = {
    "epochs": ({"epochs": 0}, ValueError, r"\[fit\] epochs must be at least 1"),
    "batch_size": ({"batch_size": 2.5}, TypeError, r"\[fit\] batch_size must be an integer"),
    "unknown loss": (
        {"loss": "l2"},
        ValueError,
        r"loss must be one of 'cross_entropy', 'mse', .*, or a function, got 'l2'",
    ),
    "loss of no kind": ({"loss": 3}, TypeError, r"\[fit\] loss must be a name or a function"),
    "loss that is no scalar": ({"loss": lambda p, y: p}, ValueError, r"\[fit\] loss must return a scalar mx.array, got shape \(2, 2\)"),
    "loss that is no array": ({"loss": lambda p, y: 1.0}, ValueError, r"\[fit\] loss must return a scalar mx.array, got float"),
    "unknown metric": ({"metrics": ["f1"]}, ValueError, r"metrics must be among 'accuracy', 'mae', 'mse', 'auc', or functions, got 'f1'"),
    "metrics of a text": ({"metrics": "mse"}, TypeError, r"metrics must be a list"),
    "labels out of range": (
        {"train": Sequences(X, [0, 1, 2, 1])},
        ValueError,
        r"y must hold classes in 0 .. 1, .* got 2",
    ),
    "labels of floats": ({"train": Sequences(X, Y * 1.0)}, TypeError, r"\[\w+\] y must hold integers"),
    "targets of another shape": ({"train": Sequences(X, np.zeros((4, 3))), "loss": "mse"}, ValueError, r"y must have"),
    "no targets": ({"train": Sequences(X)}, ValueError, r"\[fit\] train must hold targets y"),
    "no batches": ({"train": []}, ValueError, r"\[fit\] train must hold at least one batch"),
    "a generator": (
        {"train": (b for b in DATA.batches(2))},
        TypeError,
        r"train must be Sequences, or batches that can be iterated again",
    ),
    "arrays": ({"train": X}, TypeError, r"\[fit\] train must be Sequences"),
    "an unknown entry": ({"train": [{"x": X, "labels": Y}]}, ValueError, r"a batch must be a dict of x, y, time_deltas, lengths, mask"),
    "other features": ({"train": Sequences(np.zeros((4, 3, 2)), Y)}, ValueError, r"\[CfC\] x must"),
    "validation's labels": ({"validation": Sequences(X, Y + 1)}, ValueError, r"y must hold classes in 0 .. 1"),
    "negative rate": ({"learning_rate": -1}, ValueError, r"\[fit\] learning_rate must be"),
    "rate of text": ({"learning_rate": "fast"}, TypeError, r"\[fit\] learning_rate must be"),
    "optimizer": ({"optimizer": "adam"}, TypeError, r"\[fit\] optimizer must be one of mlx.optimizers, got str"),
    "clip_norm": ({"clip_norm": 0}, ValueError, r"\[fit\] clip_norm must be"),
    "precision": ({"precision": "int8"}, ValueError, r"precision must be one of"),
    "monitor": ({"patience": 2}, ValueError, r"\[fit\] monitor must be one of 'loss'"),
    "resume": ({"resume": True}, ValueError, r"\[fit\] resume must be False without a folder `checkpoint`, got True"),
    "every": ({"every": 5}, ValueError, r"\[fit\] every must be None without a folder `checkpoint`, got 5"),
    "stateful": ({"stateful": True}, ValueError, r"\[fit\] train must be consecutive batches"),
    "flags": ({"bucket": 1}, TypeError, r"\[fit\] bucket must be"),
    "model": ({"model": lambda x: x}, TypeError, r"\[fit\] model must be an mlx.nn.Module"),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_arguments_are_named_before_the_first_step(case):
    options, kind, message = BAD_FITS[case]
    options = GOOD | {"train": DATA, "model": cfc()} | options
    model, before = options.pop("model"), None
    if isinstance(model, nn.Module):
        before = weights(model)
    with pytest.raises(kind, match=message):
        fit(model, options.pop("train"), **options)
    assert before is None or same(weights(model), before)


def test_batches_of_another_size_are_named_when_they_come():
    with pytest.raises(ValueError, match=r"\[CfC\] x must"):
        quiet(cfc(), [(X, Y), (np.zeros((2, 3, 5)), [0, 1])])


def test_evaluate_and_predict_name_what_is_wrong():
    model = cfc()
    with pytest.raises(TypeError, match=r"\[predict\] data must be Sequences, or x"):
        predict(model, 3)
    with pytest.raises(ValueError, match=r"\[evaluate\] metrics must be among"):
        evaluate(model, DATA, ["f1"])
    with pytest.raises(ValueError, match=r"\[evaluate\]"):
        evaluate(model, Sequences(X), ["accuracy"])
    with pytest.raises(ValueError, match=r"\[evaluate\]"):
        evaluate(model, [], ["accuracy"])
    with pytest.raises(ValueError, match=r"\[predict\]"):
        predict(model, [])


def test_predictions_are_in_evaluation_mode_and_end_with_the_mode_before():
    model = cfc(backbone_dropout=0.9)
    model.train()
    first, second = predict(model, DATA), predict(model, X)
    assert np.array_equal(first, second)
    assert model.training


def test_the_time_of_an_epoch_goes_on(tmp_path):
    began = time.perf_counter()
    history = quiet(cfc(), signs(8))
    assert 0 < history["seconds"][0] < history["seconds"][1] < time.perf_counter() - began + 1
