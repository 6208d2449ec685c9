"""python -m tests.release_check [PYTHON...]: whether this checkout can be published; nothing is uploaded.

Builds the source distribution and, from it, the wheel; lets twine read both. Then, for each Python from 3.10 to 3.14 that is found on PATH
or among pyenv's: a clean virtual environment, the wheel with its dependencies from the index, one training step, a model saved and loaded,
`python -m ember_mlx --version`, and mypy --strict on a user's code. A line for each; the exit status is 1 where one failed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINORS = range(10, 15)
USE = ROOT / "tests" / "typed_use.py"
PATIENCE = 600.0  # seconds of a command
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MYPYPATH")}


class Failed(Exception):
    """The failure of a step, with its last output."""


def main(versions: list[str]) -> int:
    """Print the results; returns 1 if one FAILED."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        for line in _lines(Path(name), versions):
            print(line, flush=True)
            lines.append(line)
    failed = sum("FAILED" in line for line in lines)
    print(f"{failed} of {len(lines)} failed" if failed else "all of it works")
    return 1 if failed else 0


def _lines(folder: Path, versions: list[str]) -> Iterator[str]:
    yield _repository()
    try:
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        packed = sorted((folder / "dist").iterdir())
        wheel = next(path for path in packed if path.suffix == ".whl")
        yield f"build: {', '.join(path.name for path in packed)}"
    except Failed as error:
        yield f"build: FAILED: {error}"
        return
    try:
        run(sys.executable, "-m", "twine", "check", "--strict", *packed)
        yield "twine check --strict: passed"
    except Failed as error:
        yield f"twine check --strict: FAILED: {error}"
    tried = 0
    for version in versions:
        python = interpreter(version)
        try:
            if python is None:
                yield f"python {version}: not on this machine, not tried; {_wheels(wheel, version)}"
            else:
                tried += 1
                yield f"python {version}: {_installed(wheel, python, folder / version)}"
        except Failed as error:
            yield f"python {version}: FAILED: {error}"
    if not tried:
        yield "pythons: FAILED: none of these is on this machine"


def _repository() -> str:
    if "github.com/OWNER/" in (ROOT / "pyproject.toml").read_text():
        return "repository: FAILED: [project.urls] of pyproject.toml names no owner yet; put it in the place of OWNER"
    return "repository: named"


def interpreter(version: str) -> str | None:
    """A Python of a version on PATH or among pyenv's, that works; the one that runs this where it is of the version."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    candidates = [shutil.which(f"python{version}")]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
        candidates += sorted(map(str, Path(root).glob(f"versions/{version}.*/bin/python{version}"))) if root else []
    for path in candidates:
        if path is not None and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:  # no dead shim
            return path
    return None


def _installed(wheel: Path, python: str, folder: Path) -> str:
    """Run all checks with one Python; returns the result."""
    run(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    try:
        run(inside, "-m", "pip", "install", "--only-binary", "mlx,mlx-cpu,mlx-metal,numpy", wheel)
    except Failed as error:
        if found := re.search(r"No matching distribution found for ((?:mlx|numpy)\S*)", str(error)):
            raise Failed(f"the index has no wheel of {found[1]} for this Python and system") from None
        raise
    told = run(inside, "-c", "import ember_mlx, sys; assert sys.prefix in ember_mlx.__file__; print(ember_mlx.__version__)", cwd=folder)
    version = run(inside, "-m", "ember_mlx", "--version", cwd=folder)
    if not version == told == wheel.name.split("-")[1]:
        raise Failed(f"the wheel {wheel.name} says it is {told} and {version}")
    if "Issues page" in (report := run(inside, "-m", "ember_mlx", cwd=folder)):
        raise Failed("python -m ember_mlx does not know where reports go")
    step = run(inside, "-W", "error", USE, cwd=folder)
    shutil.copy(USE, folder)  # away from the checkout, whose annotations would be found first
    options = ["--strict", "--config-file=", f"--cache-dir={folder / 'mypy'}", f"--python-executable={inside}"]
    run(sys.executable, "-m", "mypy", *options, USE.name, cwd=folder)
    versions = report.splitlines()[0].split(", ")
    return f"{', '.join(versions)}: imported, {step}, saved and loaded; mypy --strict passes"


def _wheels(wheel: Path, version: str) -> str:
    """Whether pip finds wheels of all dependencies for a Python that is not here."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet"]
    try:
        run(*command, "--python-version", version, "--target", wheel.parent / "nowhere", wheel)
    except Failed:
        return "the index has NO wheels of MLX or NumPy for it"
    return "the index has wheels of MLX and NumPy for it"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The output of a command.

    Raises:
        Failed: another exit status than 0, with the last lines.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-8:]
        raise Failed(f"{' '.join(map(str, command[1:4]))}: exit status {done.returncode}: {' | '.join(last)}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [f"3.{minor}" for minor in MINORS]))
