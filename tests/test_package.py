"""The installed package: the wheel in a clean environment, and the NumPy part without MLX."""

import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import ember_mlx

ROOT = Path(__file__).resolve().parent.parent
USE = """
import sys, ember_mlx
import mlx.core as mx
assert sys.prefix in ember_mlx.__file__, ember_mlx.__file__
layer = ember_mlx.CfC(ember_mlx.NCPMap(10, 5, 5, 10, seed=42))
y, [h, t] = layer(mx.zeros((32, 5, 10)), return_state=True)
print(y.shape, h.shape, t.shape)
"""
HIDDEN = """
import sys
sys.modules["mlx"] = sys.modules["mlx.core"] = None
import numpy as np
import ember_mlx.reference as reference
neuron_map = reference.NCPMap(10, 5, 5, 10, seed=42)
stage = {"w_x": np.zeros((12, 4)), "w_h": np.zeros((12, 3)), "b": np.zeros(12)}
arrays = {"x": np.ones((5, 2, 4)), "dt": np.ones((5, 2)), "h0": np.ones((2, 3)), "stages": [stage]}
(h,) = reference.cfc_forward(reference.CfCSpec(((0, 3),)), arrays)
print(neuron_map.units, h.shape)
try:
    import ember_mlx
    ember_mlx.CfC
except ImportError as error:
    print("CfC needs MLX:", "mlx" in str(error))
"""


def run(*command, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_wheel_ships_the_metal_sources_and_nothing_else_besides_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ember_mlx", f"ember_mlx-{ember_mlx.__version__}.dist-info"}
    shipped = {name.removeprefix("ember_mlx/metal/") for name in names if name.startswith("ember_mlx/metal/")}
    assert shipped == {path.relative_to(ROOT / "metal").as_posix() for path in (ROOT / "metal").rglob("*") if path.is_file()}
    assert "ember_mlx/py.typed" in names  # or type checkers ignore the annotations


def test_wheel_says_what_an_index_shows(wheel):
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(f"ember_mlx-{ember_mlx.__version__}.dist-info/METADATA"))
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert {url.startswith(urls["Source"]) for url in urls.values()} == {True}  # one repository
    classifiers = set(metadata.get_all("Classifier"))
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)} < classifiers
    assert "Typing :: Typed" in classifiers
    assert (metadata["Version"], metadata["Requires-Python"]) == (ember_mlx.__version__, ">=3.10")
    assert (metadata["License-Expression"], metadata["Description-Content-Type"]) == ("MIT", "text/markdown")
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert {link.split("//")[0] for link in links} == {"https:"}  # an index has no files beside the text
    own = [link.removeprefix(f"{urls['Source']}/blob/main/") for link in links if link.startswith(urls["Source"])]
    assert len(own) > 3
    assert [path for path in own if not (ROOT / path).exists()] == []


def test_files_name_one_version():
    version = re.escape(ember_mlx.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^(## \[)?{version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_wheel_works_in_a_clean_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    assert run(python, "-E", "-c", USE, cwd=tmp_path) == "(32, 20) (32, 20) (32, 20)\n"
    shutil.copy(ROOT / "tests" / "typed_use.py", tmp_path)
    assert run(python, "-E", "-W", "error", "typed_use.py", cwd=tmp_path).startswith("one training step, loss ")
    # a user's strict check, with no settings of ours, sees the annotations of the wheel: the checkout's are out of reach
    strict = ["--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", f"--python-executable={python}"]
    run(sys.executable, "-E", "-m", "mypy", *strict, "typed_use.py", cwd=tmp_path)


def test_reference_and_maps_work_without_mlx():
    assert run(sys.executable, "-W", "error", "-c", HIDDEN, cwd=ROOT) == "20 (5, 2, 3)\nCfC needs MLX: True\n"


def test_public_names():
    assert len(set(ember_mlx.__all__)) == len(ember_mlx.__all__)  # ruff keeps them sorted
    for name in ember_mlx.__all__:
        assert getattr(ember_mlx, name) is not None
        assert name in dir(ember_mlx)
    with pytest.raises(AttributeError, match="has no attribute 'LiquidCfC'"):
        _ = ember_mlx.LiquidCfC
