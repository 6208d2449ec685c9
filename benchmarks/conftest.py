"""The suite's options, the measurement of its works, and its report: a table, a figure and a page."""

import importlib
import signal
from pathlib import Path

import pytest
from contest import Effort, Workers, measured, missing
from ending import Report, print_report, write_page
from measure import blas, environment, load
from works import OURS

EFFORTS = {"quick": Effort(3, 0.03, 1.0), "usual": Effort(9, 0.3, 60.0), "full": Effort(15, 0.5, 120.0)}


def pytest_addoption(parser):
    group = parser.getgroup("ember_mlx's benchmarks")
    group.addoption("--quick", action="store_true", help="fewer rounds and sizes: two minutes")
    group.addoption("--full", action="store_true", help="more rounds; 256 units and bfloat16 too")
    group.addoption("--out", type=Path, default=Path("out/bench"), metavar="FOLDER", help="folder for the figure and the page (out/bench)")
    group.addoption("--suite", default="contenders", metavar="MODULE", help="module with the works and contenders (contenders)")


def pytest_configure(config):
    if config.option.quick and config.option.full:
        raise pytest.UsageError("--quick or --full, not both")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends the contenders and prints the results so far
    config.suite = importlib.import_module(config.option.suite)
    words, warnings = blas()
    config.report = Report(environment(), words, warnings + load(), command=_command(config))
    config.workers = Workers(config.option.suite)


def _command(config):
    """The command, without the machine's folders."""
    words = [word for word in config.invocation_params.args if not word.startswith("/")]
    return f"pytest {' '.join(word if '/' not in word.removeprefix('benchmarks/') else Path(word).name for word in words)}".strip()


def pytest_unconfigure(config):
    if hasattr(config, "workers"):
        config.workers.close()


def pytest_report_header(config):
    return [f"NumPy's BLAS: {config.report.blas}", *(f"WARNING: {line}" for line in config.report.warnings)]


def pytest_generate_tests(metafunc):
    if {"work", "contender"} <= set(metafunc.fixturenames):
        config, pairs = metafunc.config, []
        for work in config.suite.all_works(config.option.quick, config.option.full):
            for name in work.contenders:
                lacking = missing(name, config.suite.PACKAGES)
                if lacking:
                    config.report.left_out[name] = lacking
                else:
                    pairs.append(pytest.param(work, name, id=f"{work.name}, {name}"))
        metafunc.parametrize(("work", "contender"), pairs)


def pytest_collection_finish(session):
    """Determine the contenders of each work from the selected tests."""
    session.config.selected = {}
    for item in session.items:
        if hasattr(item, "callspec") and "contender" in item.callspec.params:
            session.config.selected.setdefault(item.callspec.params["work"].name, []).append(item.callspec.params["contender"])


@pytest.fixture
def outcomes(request, work):
    """The outcomes of a work's contenders, all measured at the first request; ours is always included, for comparison."""
    config = request.config
    if work.name not in config.report.outcomes:
        names = dict.fromkeys([OURS, *config.selected[work.name]])
        key = [work.name, config.option.quick, config.option.full]
        effort = EFFORTS["quick" if config.option.quick else "full" if config.option.full else "usual"]
        config.report.outcomes[work.name] = work, measured(work, key, names, config.workers, effort)
    return config.report.outcomes[work.name][1]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.pop("node", None)  # saved runs may be shared
    machine_info["blas"] = config.report.blas


def pytest_terminal_summary(terminalreporter, config):
    if config.report.outcomes:
        print_report(config.report, terminalreporter.write_line)
        for path in write_page(config.report, config.option.out):
            terminalreporter.write_line(f"{path}")
