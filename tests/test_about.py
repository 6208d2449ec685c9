"""python -m ember_mlx: the facts for a bug report, even if MLX or the device does not work."""

import getpass
import os
import platform
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import ember_mlx
from ember_mlx import about

ROOT = Path(__file__).resolve().parent.parent
ABSENT = "raise ModuleNotFoundError(\"No module named 'mlx'\")"
GPU = """
class Device:
    type = "gpu"
    def __str__(self):
        return "Device(gpu, 0)"
def default_device():
    return Device()
def device_info():
    return {"device_name": "Some GPU"}
def ones(shape):
    return 1
"""
REFUSES = GPU + "def eval(*arrays):\n    raise RuntimeError('[metal::load_device] no\\n  device in /home/somebody/x')"
ABORTS = GPU + "def eval(*arrays):\n    import os; os.abort()"


def run(*arguments, path=ROOT, cwd=ROOT, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBER_MLX_")}
    environment |= {"PYTHONPATH": str(path)} | variables
    command = [sys.executable, "-W", "error", "-m", "ember_mlx", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def with_mlx(folder, text):
    """A run with another mlx.core."""
    (folder / "mlx").mkdir()
    (folder / "mlx" / "__init__.py").touch()
    (folder / "mlx" / "core.py").write_text(text)
    return run(path=f"{folder}{os.pathsep}{ROOT}", cwd=folder)


def test_everything_that_a_report_needs():
    done = run(EMBER_MLX_LAUNCH_MS="5", EMBER_MLX_BACKEND="ops")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    versions = f"ember_mlx {ember_mlx.__version__}, mlx {mx.__version__}, numpy {np.__version__}, python {platform.python_version()}"
    assert lines[0] == versions
    assert lines[1] == f"system    {platform.platform()}"
    assert lines[2].startswith(f"device    {mx.default_device()}, ")
    assert lines[3].startswith("backend   ops; kernels: ")
    assert "set       EMBER_MLX_BACKEND=ops, EMBER_MLX_LAUNCH_MS=5" in lines
    assert any(line.startswith("extras    ") for line in lines)
    assert any(line.startswith("Report a bug at ") for line in lines)
    assert "python -m ember_mlx --check --quick" in lines[-1]


def test_version_alone():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ember_mlx.__version__}\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ABSENT, "not known, since MLX cannot be imported: No module named 'mlx'"),
        (
            REFUSES,
            "Device(gpu, 0), device_name Some GPU, which fails: RuntimeError: [metal::load_device] no device in ~/x",
        ),
        (ABORTS, "not known; MLX ended its process with signal SIGABRT: "),
    ],
    ids=["absent", "refuses", "aborts"],
)
def test_it_works_where_mlx_does_not(tmp_path, text, told):
    done = with_mlx(tmp_path, text)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[2].startswith(f"device    {told}")
    assert "Report a bug at " in done.stdout


def test_it_does_not_wait_for_mlx_for_ever(tmp_path, monkeypatch):
    (tmp_path / "mlx.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(about, "PATIENCE", 1.0)
    assert about.asked() == {"device": "not known, since MLX did not answer within 1 s"}


def test_check_without_mlx_says_so(tmp_path):
    (tmp_path / "mlx.py").write_text(ABSENT)
    done = run("--check", path=f"{tmp_path}{os.pathsep}{ROOT}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "python -m ember_mlx: error: --check needs MLX and NumPy: No module named 'mlx'\n"


def test_a_wrong_backend_is_told():
    done = run(EMBER_MLX_BACKEND="gpu")
    assert done.returncode == 0, done.stderr
    assert "backend   [ember_mlx] EMBER_MLX_BACKEND must be one of 'auto', " in done.stdout


def test_no_one_is_named(monkeypatch):
    done = run(EMBER_MLX_BACKEND=f"{Path.home() / 'notes'}:{platform.node()}")
    host = platform.node() if platform.node() not in ("", "localhost") else "no host name"
    for private in (str(Path.home()) + os.sep, host, f"/{getpass.getuser()}/"):
        assert private not in done.stdout
    monkeypatch.setattr(platform, "node", lambda: "annas-mac.local")
    monkeypatch.setenv("HOME", "/Users/anna")
    text = "annas-mac.local annas-mac: /Users/anna/a, '/home/otto/b' macOS-15.5-arm64"
    assert about.without_names(text) == "HOST HOST: ~/a, '~/b' macOS-15.5-arm64"


def test_extras_of_the_installed_metadata(monkeypatch):
    requires = [
        "numpy>=1.26",
        'surely-not-there>=2; extra == "plot"',
        'numpy>=1.26; extra == "examples"',
        'ember-mlx[plot]; extra == "examples"',
        "numpy; (sys_platform == 'nowhere') and extra == 'test'",
        "numpy; extra == 'test'",
    ]
    monkeypatch.setattr(about.importlib.metadata, "requires", lambda name: requires)
    assert about._needed("plot") == ["surely-not-there"]
    assert about._needed("examples") == ["numpy", "surely-not-there"]
    assert about._needed("test") == ["numpy"]
    extras = {"Provides-Extra": ["plot", "examples", "test"]}
    monkeypatch.setattr(about.importlib.metadata, "metadata", lambda name: type("M", (), {"get_all": lambda self, key: extras[key]})())
    assert about._extras() == "test; in part examples (without surely-not-there); not plot"
