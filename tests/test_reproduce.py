"""`make reproduce`: one command for every published result."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("reproduce", "reproduce_xor", "reproduce_mnist1d", "reproduce_half_cheetah", "demo")


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("reproduce")
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["", "--help"])
def test_without_a_task_it_lists_them(reproduce, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["reproduce.py"])
    said = []
    assert reproduce.main(arguments or None, said.append) == 0
    assert [line.split()[0] for line in said[:-1]] == ["half-cheetah", "xor", "mnist1d"]


@pytest.mark.parametrize("name", ["half-cheetah", "xor", "mnist1d"])
def test_a_task_has_its_own_options(reproduce, capsys, name):
    with pytest.raises(SystemExit) as stop:
        reproduce.main([name, "--seeds", "0"])
    assert stop.value.code == 2
    script = f"reproduce_{name.replace('-', '_')}.py"
    assert capsys.readouterr().err == f"{script}: error: --seeds must be at least 1, got 0\n"


def test_an_unknown_task_is_named(reproduce, capsys):
    assert reproduce.main(["imagenet"]) == 2
    assert capsys.readouterr().err == "reproduce.py: error: the task must be one of half-cheetah, xor, mnist1d; got 'imagenet'\n"


def test_every_script_is_in_the_list(reproduce):
    scripts = {path.stem.removeprefix("reproduce_").replace("_", "-") for path in (ROOT / "examples").glob("reproduce_*.py")}
    assert scripts == reproduce.TASKS.keys()
