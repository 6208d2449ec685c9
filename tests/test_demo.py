"""The demo: its accuracy, its figure, its errors and its handling of Ctrl-C."""

import importlib.util
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DEMO, DATA = ROOT / "examples" / "demo.py", ROOT / "examples" / "data"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1"}
ENOUGH = 0.93
TIME_LIMIT = 120  # seconds; an idle machine needs a tenth

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="examples/data is not part of the source distribution")

SHAPES = {
    "event_mnist5k": {"x": (256, 1), "dt": (256,), "len": (), "y": (), "idx": ()},
    "japanese_vowels": {"x": (29, 12), "len": (), "y": ()},
}
COUNTS = {"event_mnist5k": {"train": 4000, "test": 1000}, "japanese_vowels": {"train": 270, "test": 370}}


def run_demo(*options):
    command = [sys.executable, str(DEMO), *map(str, options)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return run_demo("--quick", "--out", out), out


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_data
def test_quick_run_reaches_its_accuracy(quick_run):
    result, _ = quick_run
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    words = result.stdout.splitlines()[-1].split(" ")
    assert words[:2] == ["test", "accuracy"]
    assert len(words) == 3
    assert float(words[2]) >= ENOUGH


@needs_data
def test_quick_run_says_whose_figures_are_not_its_own(quick_run):
    output = quick_run[0].stdout
    assert "ncps CfC *" in output
    assert "* measured elsewhere" in output


@needs_data
def test_quick_run_draws(quick_run):
    _, out = quick_run
    assert [path.name for path in out.iterdir()] == ["demo-quick.png"]
    picture = (out / "demo-quick.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    assert 1200 <= width <= 3000
    assert 800 <= height <= 2000
    assert len(picture) > 40_000  # an empty canvas is a tenth of this


@needs_data
def test_a_seed_gives_one_result(tmp_path):
    first, second = (run_demo("--quick", "--epochs", 1, "--seed", 3, "--out", tmp_path).stdout.splitlines() for _ in range(2))
    assert first[-1].startswith("test accuracy 0.")
    assert first[-1] == second[-1]
    losses = [next(line for line in lines if line.startswith("epoch 1/1")).split("accuracy")[0] for lines in (first, second)]
    assert losses[0] == losses[1]


@needs_data
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_ends_cleanly(tmp_path):
    command = [sys.executable, str(DEMO), "--quick", "--epochs", "1000", "--out", str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch    1/"):
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130
    assert errors == ""
    assert output.splitlines()[-1].startswith("demo.py: stopped in epoch ")
    assert " of 1000: test accuracy 0." in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--units", "0"], "--units must be at least 1, got 0"),
        (["--units", "many"], "--units must be a whole number, got 'many'"),
        (["--epochs", "-1"], "--epochs must be at least 1, got -1"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--lr", "0"], "--lr must be positive and finite, got 0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--lr", "fast"], "--lr must be a number, got 'fast'"),
        (["--model", "cnn"], "--model must be one of cfc-mixed, cfc, ncp, lstm, gru; got 'cnn'"),
        (["--precision", "int8"], "--precision must be one of float32, bfloat16, float16; got 'int8'"),
        (["--model", "ncp", "--units", "3"], "--units must be at least 4 for --model ncp, got 3"),
        (["--units"], "--units expected one argument"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named_in_one_line(demo, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        demo.main(options)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"demo.py: error: {message}\n"


def test_a_file_in_place_of_the_folder_is_named(demo, capsys, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit) as stop:
        demo.main(["--out", str(tmp_path / "taken")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"demo.py: error: --out {tmp_path / 'taken'} cannot be a folder: File exists\n"


def test_missing_packages_are_named(demo, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name in ("matplotlib", "rich") else object())
    with pytest.raises(SystemExit) as stop:
        demo.main(["--out", str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().err == 'demo.py: error: matplotlib and rich missing; install with: pip install "ember-mlx[examples]"\n'


@needs_data
@pytest.mark.parametrize("name", SHAPES)
def test_data_has_the_documented_shapes(name):
    arrays = np.load(DATA / f"{name}.npz")
    expected = {f"{key}_{part}": (count, *shape) for key, shape in SHAPES[name].items() for part, count in COUNTS[name].items()}
    assert {key: arrays[key].shape for key in arrays} == expected
    for key in arrays:
        assert arrays[key].dtype == (np.float32 if key[0] in "xd" else np.int32)
    readme = (DATA / "README.md").read_text()
    for key, shape in expected.items():
        assert f"`{key}`" in readme
        assert str(shape) in readme


@needs_data
def test_event_streams_are_whole_digits():
    with np.load(DATA / "event_mnist5k.npz") as arrays:
        for part in ("train", "test"):
            assert (arrays[f"dt_{part}"].sum(1) == 28 * 28).all()
