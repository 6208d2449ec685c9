"""The release check's results, with fake commands, since the real ones take minutes and need an index."""

import sys
from pathlib import Path

import pytest

from . import release_check
from .release_check import Failed

WHEEL = Path("ember_mlx-0.1.0-py3-none-any.whl")


def test_one_failure_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(release_check, "_lines", lambda folder, versions: iter(["build: x.whl", "python 3.12: FAILED: no"]))
    assert release_check.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["python 3.12: FAILED: no", "1 of 2 failed"]
    monkeypatch.setattr(release_check, "_lines", lambda folder, versions: iter(["build: x.whl"]))
    assert release_check.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "all of it works"


def test_a_python_without_wheels_of_mlx_is_named(monkeypatch, tmp_path):
    def run(*command, **options):
        if "install" in command:
            raise Failed("exit status 1: ERROR: No matching distribution found for mlx>=0.32.4")

    monkeypatch.setattr(release_check, "run", run)
    with pytest.raises(Failed, match=r"^the index has no wheel of mlx>=0.32.4 for this Python and system$"):
        release_check._installed(WHEEL, "python", tmp_path)
    assert release_check._wheels(WHEEL, "3.14") == "the index has NO wheels of MLX or NumPy for it"


def test_an_interpreter_that_does_not_start_is_passed_over(monkeypatch, tmp_path):
    def program(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    program(tmp_path / "bin" / "python3.99", "exit 127")
    program(tmp_path / "bin" / "pyenv", f"echo {tmp_path / 'pyenv'}")
    assert release_check.interpreter("3.99") is None
    found = program(tmp_path / "pyenv" / "versions" / "3.99.1" / "bin" / "python3.99", "exit 0")
    assert release_check.interpreter("3.99") == found
    assert release_check.interpreter(f"3.{sys.version_info[1]}") == sys.executable


def test_a_command_that_fails_says_its_last_lines():
    with pytest.raises(Failed, match=r"exit status 3: first \| last$"):
        release_check.run(sys.executable, "-c", "import sys; print('first'); print('last'); sys.exit(3)")
    with pytest.raises(Failed, match=r"^no-such-program: "):
        release_check.run("no-such-program")
